"""Answers of many rows in pieces: consecutive timespans, each small enough to sort in memory.

Sorting all rows at once would take gigabytes, or spill them. The rows are ordered by time first, so
the pieces one after the other are the same bytes as the whole.
"""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import BinaryIO, Final

from k2cli.query.answer import Answer
from k2cli.query.connection import Connection
from k2cli.query.questions import filters, select_rows
from k2cli.query.render import quoted
from k2cli.query.selection import Selection
from k2cli.query.timespan import Timespan
from k2cli.records import RecordKind

PIECE_ROWS: Final = 100_000  # 2 million rows to csv stay below 600 MB
# The forms of `render.COPIES` that a piece can be appended to, and the form of such a piece.
_APPENDED: Final = {
    "csv": "csv without header",
    "csv without header": "csv without header",
    "tsv": "tsv without header",
    "tsv without header": "tsv without header",
    "ndjson": "ndjson",
}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_US: Final = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)


class LargeAnswer(Answer):
    """The rows of a selection, by time; `copy` sorts and writes text formats in pieces."""

    def __init__(
        self, session: Connection, kind: RecordKind, selection: Selection, *, piece_rows: int
    ) -> None:
        super().__init__(session=session, question=select_rows(kind, selection), is_from_user=False)
        self._kind = kind
        self._selection = selection
        self._piece_rows = piece_rows

    def copy(self, form: str, sink: BinaryIO) -> int:
        """Write all rows to `sink` in a format of `render.COPIES`; return how many."""
        if form not in _APPENDED:
            return super().copy(form, sink)
        with self._translated():  # every piece looks at the statistics of all files
            self._session.connection.execute("SET parquet_metadata_cache = true")
        rows, limit = 0, self._selection.limit
        for span in self.spans():
            self._session.check_cancelled()
            left = None if limit is None else limit - rows
            rows += self._piece(span, left).copy(form, sink)
            if rows == limit:
                break
            form = _APPENDED[form]
        return rows

    def _piece(self, span: Timespan, limit: int | None) -> Answer:
        piece = select_rows(self._kind, replace(self._selection, span=span, limit=limit))
        with self._translated():
            return Answer(session=self._session, question=piece, is_from_user=False)

    def spans(self) -> list[Timespan]:
        """Cut the selected time into spans of about `piece_rows` rows, in the answer's order."""
        span = self._selection.span
        edges = [span.start, *self._cuts(), span.end]
        spans = [Timespan(start, end) for start, end in pairwise(edges)]
        return spans[::-1] if self._selection.is_descending else spans

    def _cuts(self) -> list[datetime]:
        """Return times between the pieces, each after the first row and in order."""
        condition, values = filters(self._kind, self._selection)
        time = quoted(self._kind.partition_by)
        source = f"FROM {quoted(self._kind.name)} WHERE {condition}"
        with self._translated():
            execute = self._session.connection.execute
            (rows,) = execute(f"SELECT count(*) {source}", values).fetchone() or (0,)
            pieces = -(-rows // self._piece_rows)
            if pieces <= 1:
                return []
            shares = [at / pieces for at in range(1, pieces)]
            found = execute(
                f"SELECT approx_quantile(epoch_us({time}), {shares}),"
                f" min(epoch_us({time})) {source}",
                values,
            ).fetchone()
        quantiles, first = found or ([], 0)
        cuts = sorted({at for at in quantiles if first < at <= _LAST_US})
        return [_EPOCH + timedelta(microseconds=at) for at in cuts]
