"""Compare one day of a symbol's trades in the table with those of a source, by id.

The comparison is exact, and DuckDB spills what does not fit its memory. Rows are compared as an
append does (`storage.admission.are_equal`): times to the precision that both have, and an unknown
side matches any.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import numpy as np

from k2cli.background import begin
from k2cli.query.engine import Session
from k2cli.query.questions import Question
from k2cli.query.render import literal
from k2cli.query.vendor import translated
from k2cli.query.views import arrow_to_duckdb_type, path_pattern
from k2cli.ranges import Ranges
from k2cli.records import MAX_NUMBER, OWN_ID, TRADES, series_prefix

COMPARED: Final = TRADES.compared
SOURCE_COLUMNS: Final = ("source_sequence", *COMPARED)
MAX_EXAMPLES: Final = 100
_AMOUNTS: Final = ("price", "quantity")
_MISSING, _EXTRA, _DIFFERING, _REPEATED = "missing", "extra", "differing", "repeated"
_IS_EQUAL: Final = (
    "s.price = t.price AND s.quantity = t.quantity"
    " AND (s.side = t.side OR s.side = 'UNKNOWN' OR t.side = 'UNKNOWN')"
    " AND (s.us = t.us OR s.us // 1000 = t.us // 1000 AND (s.us % 1000 = 0 OR t.us % 1000 = 0))"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SymbolDay:
    """One symbol of an exchange on one day, UTC."""

    exchange: str
    symbol: str
    day: date

    @property
    def start(self) -> datetime:
        """The first moment of the day."""
        return datetime.combine(self.day, time(tzinfo=UTC))

    @property
    def end(self) -> datetime:
        """The first moment of the next day."""
        return self.start + timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """The trades of the day on one side."""

    trades: int
    first_id: int | None  # None: no trades
    last_id: int | None
    volume: Decimal  # the sum of the quantities
    turnover: Decimal  # the sum of price times quantity


@dataclass(frozen=True, slots=True, kw_only=True)
class Differing:
    """A trade whose values differ; the compared columns of both rows."""

    id: int
    stored: Mapping[str, object]
    source: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The differences between the table and a source, as ranges of ids."""

    source: Totals
    stored: Totals
    missing: Ranges  # in the source, not in the table
    extra: Ranges  # in the table, not in the source
    differing: Ranges  # in both, with other values
    repeated: Ranges  # more than once in the table
    without_id: int  # rows of the day outside the exchange's series of ids, not compared
    examples: Sequence[Differing]  # the first of the differing

    @property
    def is_equal(self) -> bool:
        """Whether the table has exactly the trades of the source."""
        faults = (self.missing, self.extra, self.differing, self.repeated)
        return not any(map(len, faults)) and self.source == self.stored


def compare_day(
    session: Session,
    source: Path,
    of: SymbolDay,
    *,
    numbers: tuple[int, int] | None,
    last: int | None = None,
) -> Comparison:
    """Compare the view `trades` of a session with a Parquet file of `SOURCE_COLUMNS`.

    `numbers` are the first and last id of the day in the source; their rows are found in the view
    on any day. Trades above `last` are not compared: the source does not reach them yet. Rows of
    the source on another day are compared only if the table has their ids on this day.

    Raises:
        Unavailable: the temporary disk space is used up.
        BadData: a file is damaged.
    """
    for statement in _views(source, of, numbers, last):
        _run(session, statement)
    _run(session, _FAULTS)
    _run(session, _REPETITIONS)
    is_of_day = f"FROM trades WHERE {_of_series(of)} AND {_of_day(of)}"
    (others,) = _rows(
        session, f"SELECT count(*) AS n {is_of_day} AND ({_is_numbered(of)}) IS NOT TRUE"
    )
    differing = _ranges(session, _DIFFERING)
    return Comparison(
        source=_totals(session, _SOURCE_ONCE),
        stored=_totals(session, "k2_stored WHERE is_of_day"),
        missing=_ranges(session, _MISSING),
        extra=_ranges(session, _EXTRA),
        differing=differing,
        repeated=_ranges(session, _REPEATED),
        without_id=others["n"],
        examples=_examples(session) if len(differing) else (),
    )


def _views(
    source: Path, of: SymbolDay, numbers: tuple[int, int] | None, last: int | None
) -> list[str]:
    wanted = [_of_day(of)]
    if numbers is not None:
        wanted.append(f"source_sequence BETWEEN {numbers[0]:d} AND {numbers[1]:d}")
    reached = "true" if last is None else f"source_sequence <= {last:d}"
    amounts = ", ".join(
        f"CAST({name} AS {arrow_to_duckdb_type(TRADES.type_of(name))}) AS {name}"
        for name in _AMOUNTS
    )
    columns = (
        "source_sequence AS id, epoch_us(timestamp) AS us, timestamp AS time, side,"
        f" {amounts}, coalesce({_of_day(of)}, false) AS is_of_day"
    )
    return [
        f"CREATE TEMP VIEW k2_source AS SELECT {columns}"
        f" FROM read_parquet({literal(path_pattern(str(source)))}, hive_partitioning = false)",
        f"CREATE TEMP VIEW k2_stored AS SELECT {columns} FROM trades WHERE {_of_series(of)}"
        f" AND ({' OR '.join(wanted)}) AND {reached} AND {_is_numbered(of)}",
    ]


# Of a trade that the source has several times, one counts.
_SOURCE_ONCE: Final = (
    "(SELECT id, any_value(price) AS price, any_value(quantity) AS quantity"
    " FROM k2_source WHERE is_of_day GROUP BY id)"
)
_FAULTS: Final = f"""
CREATE TEMP TABLE k2_faults AS SELECT DISTINCT id, fault FROM (
  SELECT coalesce(s.id, t.id) AS id, CASE
    WHEN t.id IS NULL THEN CASE WHEN s.is_of_day THEN '{_MISSING}' END
    WHEN s.id IS NULL THEN CASE WHEN t.is_of_day THEN '{_EXTRA}' END
    WHEN (s.is_of_day OR t.is_of_day) AND ({_IS_EQUAL}) IS NOT TRUE THEN '{_DIFFERING}'
  END AS fault
  FROM k2_source AS s FULL JOIN k2_stored AS t ON s.id = t.id
) WHERE fault IS NOT NULL
"""
_REPETITIONS: Final = f"""
INSERT INTO k2_faults SELECT id, '{_REPEATED}' FROM k2_stored WHERE is_of_day
GROUP BY id HAVING count(*) > 1
"""
_RUNS: Final = """
SELECT min(id) AS first_id, max(id) AS last_id
FROM (SELECT id, id - row_number() OVER (ORDER BY id) AS run FROM k2_faults WHERE fault = ?)
GROUP BY run ORDER BY first_id
"""
_EXAMPLES: Final = f"""
SELECT id, {", ".join(f"s.{name}, t.{name} AS stored_{name}" for name in (*_AMOUNTS, "side"))},
  s.time AS timestamp, t.time AS stored_timestamp
FROM (SELECT id FROM k2_faults WHERE fault = '{_DIFFERING}' ORDER BY id LIMIT {MAX_EXAMPLES})
JOIN k2_source AS s USING (id) JOIN k2_stored AS t USING (id)
WHERE ({_IS_EQUAL}) IS NOT TRUE ORDER BY id, s.us, t.us LIMIT {MAX_EXAMPLES}
"""


def _of_series(of: SymbolDay) -> str:
    return f"exchange = {literal(of.exchange)} AND symbol = {literal(of.symbol)}"


def _of_day(of: SymbolDay) -> str:
    start, end = (literal(each.isoformat()) for each in (of.start, of.end))
    return f"(timestamp >= TIMESTAMPTZ {start} AND timestamp < TIMESTAMPTZ {end})"


def _is_numbered(of: SymbolDay) -> str:
    """Select rows of the numbered series, as `storage.numbered` does."""
    prefix = series_prefix(f"{of.exchange}/{TRADES.name}/{of.symbol}")
    return (
        f"source_sequence BETWEEN 0 AND {MAX_NUMBER:d} AND (starts_with(message_id,"
        f" {literal(prefix)}) OR NOT regexp_matches(message_id, {literal(OWN_ID)}))"
    )


def _run(session: Session, sql: str) -> None:
    """Run a statement without rows; an interrupt ends it."""
    with translated():
        session.wait(begin(lambda: session.connection.execute(sql)))


def _rows(session: Session, sql: str, *values: object) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = session.ask(Question(sql, values)).table().to_pylist()
    return rows


def _totals(session: Session, rows: str) -> Totals:
    (sums,) = _rows(
        session,
        "SELECT count(*) AS trades, min(id) AS first_id, max(id) AS last_id,"
        " coalesce(sum(quantity), 0) AS volume, coalesce(sum(price * quantity), 0) AS turnover"
        f" FROM {rows}",
    )
    return Totals(**sums)


def _ranges(session: Session, fault: str) -> Ranges:
    found = session.ask(Question(_RUNS, [fault])).table()
    columns = [found[name].to_numpy().astype(np.int64) for name in ("first_id", "last_id")]
    return np.column_stack(columns)


def _examples(session: Session) -> list[Differing]:
    return [
        Differing(
            id=row["id"],
            stored={name: row[f"stored_{name}"] for name in COMPARED},
            source={name: row[name] for name in COMPARED},
        )
        for row in _rows(session, _EXAMPLES)
    ]
