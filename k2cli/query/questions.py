"""Questions about any record kind, as SQL over its view. Values are always parameters."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from k2cli.errors import UsageError
from k2cli.iso import iso_utc
from k2cli.nearest import first_names, nearest_name, suggestion
from k2cli.query.render import quoted
from k2cli.query.selection import Selection
from k2cli.records import RecordKind
from k2cli.symbols import join_symbol

_SHOWN_SYMBOLS: Final = 10


@dataclass(frozen=True, slots=True)
class Question:
    """A SELECT over the views of the record kinds, with the values of its `?`."""

    sql: str
    values: Sequence[object] = ()


def check_columns(kind: RecordKind, columns: Iterable[str]) -> None:
    """Check that the record kind has these columns.

    Raises:
        UsageError: unknown column; suggests the nearest one, or all.
    """
    for name in columns:
        if name not in kind.arrow.names:
            hint = suggestion(name, kind.arrow.names)
            raise UsageError(f"{kind.name} have no column {name!r}", hint=hint)


def select_rows(kind: RecordKind, selection: Selection) -> Question:
    """Select rows by time, exchange sequence, symbol and message id.

    The order is total, so the same rows always have the same order; descending is its exact
    reverse.
    """
    check_columns(kind, selection.columns)
    columns = ", ".join(map(quoted, selection.columns)) or "*"
    rows, values = selected(kind, selection)
    return Question(f"SELECT {columns} {rows}", values)


def selected(kind: RecordKind, selection: Selection) -> tuple[str, list[object]]:
    """Build a query without its SELECT list: rows, order and limit, and the values of its `?`."""
    condition, values = filters(kind, selection)
    order = ordering(kind, is_descending=selection.is_descending)
    limit = "" if selection.limit is None else f" LIMIT {selection.limit:d}"
    return f"FROM {quoted(kind.name)} WHERE {condition} ORDER BY {order}{limit}", values


def ordering(kind: RecordKind, *, is_descending: bool) -> str:
    """Build the total order of rows: time, exchange sequence, symbol, message id.

    It uses the stored values, even if a query selects other values under their names.
    """
    way = "DESC NULLS FIRST" if is_descending else "ASC NULLS LAST"
    keys = (kind.partition_by, "source_sequence", "symbol", "message_id")
    return ", ".join(f"{quoted(kind.name)}.{quoted(key)} {way}" for key in keys)


def filters(kind: RecordKind, selection: Selection) -> tuple[str, list[object]]:
    """Build the condition of a selection, with a `?` for each returned value."""
    conditions, values = ["true"], list[object]()
    for column, words in (("symbol", selection.symbols), ("exchange", selection.exchanges)):
        if words:
            conditions.append(f"{column} IN ({', '.join('?' for _ in words)})")
            values.extend(words)
    for operator, moment in ((">=", selection.span.start), ("<", selection.span.end)):
        if moment is not None:
            conditions.append(f"{quoted(kind.partition_by)} {operator} ?")
            values.append(moment)
    return " AND ".join(conditions), values


def list_symbols(kinds: Iterable[RecordKind]) -> Question:
    """Select every symbol of every exchange, with rows, first and last time per kind."""
    each = " UNION ALL ".join(
        f"SELECT exchange, symbol, '{kind.name}' AS kind, count(*) AS rows,"
        f' min("{kind.partition_by}") AS first_time, max("{kind.partition_by}") AS last_time'
        f" FROM {quoted(kind.name)} GROUP BY exchange, symbol"
        for kind in kinds
    )
    return Question(f"FROM ({each}) ORDER BY exchange, symbol, kind")


HOLES: Final = "k2_holes"  # the view that `list_gaps` reads, see `storage.holes.SCHEMA`


def list_gaps(kind: RecordKind) -> Question:
    """Select the missing numbers of the view of holes, with the times of the rows around them.

    A number next to a hole may have no row, only a number that the stream has seen. Then the next
    row counts, which takes a scan of the symbol.
    """
    records, time = quoted(kind.name), quoted(kind.partition_by)
    edges = " UNION ".join(
        f"SELECT exchange, symbol, {edge} AS number FROM {HOLES}"
        for edge in ("id_before", "id_after")
    )
    near = ", ".join(
        f"arg_{most}({time}, source_sequence) FILTER (source_sequence {way} number) AS {side}"
        for most, way, side in (("max", "<", "before"), ("min", ">", "after"))
    )
    joins = " ".join(
        f"LEFT JOIN {view} AS {view}_{side} ON {view}_{side}.exchange = holes.exchange"
        f" AND {view}_{side}.symbol = holes.symbol AND {view}_{side}.number = holes.id_{side}"
        for view in ("times", "near")
        for side in ("before", "after")
    )
    return Question(
        f"WITH edges AS ({edges}), times AS ("
        f"SELECT exchange, symbol, source_sequence AS number, min({time}) AS time FROM {records}"
        " WHERE (exchange, symbol, source_sequence) IN (FROM edges) GROUP BY ALL),"
        " unmet AS (FROM edges ANTI JOIN times USING (exchange, symbol, number)),"
        f" near AS (SELECT exchange, symbol, number, {near}"
        f" FROM {records} JOIN unmet USING (exchange, symbol) GROUP BY ALL)"
        " SELECT holes.exchange, holes.symbol, first_id, last_id,"
        " last_id - first_id + 1 AS missing,"
        " coalesce(times_before.time, near_before.before) AS time_before,"
        " coalesce(times_after.time, near_after.after) AS time_after,"
        " reason, found, last_attempt, attempts"
        f" FROM {HOLES} AS holes {joins} ORDER BY holes.exchange, holes.symbol, first_id"
    )


def explain_nothing(
    symbols: Iterable[dict[str, Any]], kind: RecordKind, selection: Selection
) -> list[str]:
    """Explain a selection without rows: for each symbol the stored times, or similar names.

    `symbols` are the rows of `list_symbols` for this kind.
    """
    stored: dict[str, list[dict[str, Any]]] = {}
    for row in symbols:
        stored.setdefault(row["symbol"], []).append(row)
    spelt = {join_symbol(symbol): symbol for symbol in selection.symbols}
    return [_explained(symbol, kind, stored) for symbol in ({*spelt} & {*stored}) or spelt.values()]


def _explained(symbol: str, kind: RecordKind, stored: Mapping[str, list[dict[str, Any]]]) -> str:
    if symbol in stored:
        spans = (
            f"{row['exchange']} {iso_utc(row['first_time'])} to {iso_utc(row['last_time'])}"
            for row in stored[symbol]
        )
        return f"{kind.name} of {symbol}: {', '.join(spans)}"
    if nearest := nearest_name(symbol, stored):
        return f"no {kind.name} of {symbol}; did you mean {nearest}?"
    names = sorted(stored)
    shown = first_names(names, _SHOWN_SYMBOLS) or "none"
    return f"no {kind.name} of {symbol}; there are {shown}: k2 query symbols"
