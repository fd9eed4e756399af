"""Write a commit: dead letters, then rows and offsets, table by table."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import pyarrow as pa

from k2cli.columns import join_batches
from k2cli.errors import Unavailable
from k2cli.pipelines.conflicts import ConflictReport
from k2cli.pipelines.consume.batch import Batch
from k2cli.pipelines.consume.policy import KindTable, Outlets
from k2cli.pipelines.consume.run import Run
from k2cli.pipelines.sinks import report_commit
from k2cli.records import KINDS, RecordKind
from k2cli.storage.offsets import KEY, OffsetPosition, Partition, Span, decode_offsets

Spans = Mapping[Partition, Span]


class BatchWriter:
    """Writes batches to their tables. Everything here runs in the committing thread."""

    def __init__(
        self,
        run: Run,
        *,
        outlets: Outlets,
        kinds: Mapping[str, RecordKind],
        find_ids: Callable[[Iterable[str]], set[tuple[str, str]]],
    ) -> None:
        """Prepare; `kinds` are the topics' kinds, and `find_ids` returns their current ids."""
        self._run = run
        self._outlets = outlets
        self._kinds = kinds
        self._find_ids = find_ids
        self._conflicts = ConflictReport(run.observe)
        self._tables: dict[str, KindTable] = {}  # those that were needed so far

    def write(self, batch: Batch) -> Batch:
        """Make a batch durable, dead letters first; return the committed part.

        Raises:
            PositionMoved: a table is not at the batch's start position.
            BadData: the rejects file is full, or a row does not fit a table.
        """
        certain = self._certain(batch)
        if certain.letters:
            self._write_letters(certain)
        for name, spans in self._by_kind(certain.spans).items():
            rows = join_batches(certain.rows[name]) if name in certain.rows else self._no_rows(name)
            self._append(KINDS[name], rows, spans)
        return certain

    def begin(self, spans: Spans) -> None:
        """Commit the start positions of partitions, without rows.

        Raises:
            PositionMoved: a table already has positions for them.
        """
        for name, begun in self._by_kind(spans).items():
            self._append(KINDS[name], self._no_rows(name), begun)

    def positions(self, topics: Iterable[str]) -> dict[Partition, int]:
        """Return the positions of topics, each from the table that it feeds."""
        topics_by_kind: dict[str, set[str]] = {}
        for topic in topics:
            topics_by_kind.setdefault(self._kinds[topic].name, set()).add(topic)
        stored: dict[Partition, int] = {}
        for name, fed in topics_by_kind.items():
            read = partial(self._newest_position, KINDS[name])
            offsets = decode_offsets(self._run.patience.call("catalog_unavailable", read))
            stored |= {each: offset for each, offset in offsets.items() if each.topic in fed}
        return stored

    def _certain(self, batch: Batch) -> Batch:
        """Return the part of the batch that is certainly from its topics.

        Usually that is all of it. The rest may be from a topic that was recreated meanwhile.
        """
        ids = batch.topic_ids()
        try:
            if ids == self._find_ids({topic for topic, _ in ids}):
                return batch
        except Unavailable as exc:  # and the run must stop
            self._run.observe("kafka_unavailable", reason=str(exc))
        return batch.cut()

    def _write_letters(self, batch: Batch) -> None:
        outlets, letters = self._outlets, batch.letters
        outlets.rejects.check_size(outlets.max_reject_bytes)
        self._run.patience.call("dead_letters_unavailable", lambda: outlets.letters.write(letters))
        self._run.totals.rejects += len(letters)
        first = letters[0]
        self._run.observe(
            "reject",
            count=len(letters),
            topic=first.message.topic(),
            partition=first.message.partition(),
            offset=first.message.offset(),
            reason=first.reason,
        )

    def _by_kind(self, spans: Spans) -> dict[str, dict[Partition, Span]]:
        by_kind: dict[str, dict[Partition, Span]] = {}
        for partition, span in spans.items():
            by_kind.setdefault(self._kinds[partition.topic].name, {})[partition] = span
        return by_kind

    def _no_rows(self, name: str) -> pa.Table:
        open_table = partial(self._open_table, KINDS[name])
        table = self._run.patience.call("catalog_unavailable", open_table)
        return table.evolved_kind().arrow.empty_table()

    def _append(self, kind: RecordKind, rows: pa.Table, spans: Spans) -> None:
        rejects, totals = self._outlets.rejects, self._run.totals
        commit = self._run.patience.call(
            "catalog_unavailable",
            lambda: self._open_table(kind).append(rows, source=OffsetPosition(spans)),
        )
        totals.rows += commit.rows
        totals.duplicates += commit.duplicates
        totals.conflicts += commit.conflicts
        rejects.write(self._conflicts.report(kind, commit.conflicts, commit.examples))
        rejects.sync()
        if commit.snapshot_id is None:
            return
        totals.commits += 1
        report_commit(self._run.observe, kind, commit)

    def _newest_position(self, kind: RecordKind) -> str | None:
        table = self._open_table(kind)
        table.refresh()
        return table.stored_position(KEY)

    def _open_table(self, kind: RecordKind) -> KindTable:
        """Open a table when it is first needed."""
        if kind.name not in self._tables:
            self._tables[kind.name] = self._outlets.tables.open(kind)
        return self._tables[kind.name]
