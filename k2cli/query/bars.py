"""Bars: aggregates of trades per period, with exact sums."""

from typing import Final

from k2cli.query.questions import Question, filters
from k2cli.query.selection import Selection
from k2cli.records import TRADES

# price * quantity, a DECIMAL(18,8) times a DECIMAL(20,8), is a DECIMAL(38,16), and so is its sum;
# both are exact. vwap: DuckDB divides decimals as doubles. Turnover has 16 decimal places and
# volume 8, so the quotient of their digits as integers is the vwap with 8 places; half rounds up.
_BARS: Final = """
    WITH numbered AS (
        SELECT *,
            make_timestamptz(epoch_us("timestamp") // 60_000_000 * 60_000_000) AS minute,
            row("timestamp", source_sequence, message_id) AS position
        FROM trades WHERE {condition}
    ), bars AS (
        SELECT exchange, symbol, minute,
            arg_min(price, position) AS open, max(price) AS high, min(price) AS low,
            arg_max(price, position) AS close, sum(quantity) AS volume,
            sum(price * quantity) AS turnover, count(*) AS trades
        FROM numbered GROUP BY exchange, symbol, minute
    ), digits AS (
        SELECT *,
            CAST(replace(CAST(turnover AS VARCHAR), '.', '') AS HUGEINT) AS t,
            nullif(CAST(replace(CAST(volume AS VARCHAR), '.', '') AS HUGEINT), 0) AS v
        FROM bars
    )
    SELECT exchange, symbol, minute, open, high, low, close, volume, turnover,
        CAST(
            CAST(t // v + CASE WHEN t % v >= v - t % v THEN 1 ELSE 0 END AS DECIMAL(28, 0))
            * CAST('0.00000001' AS DECIMAL(9, 8)) AS DECIMAL(18, 8)
        ) AS vwap,
        trades
    FROM digits ORDER BY symbol, exchange, minute
"""


def one_minute_bars(selection: Selection) -> Question:
    """Aggregate trades by exchange, symbol and minute.

    Uses the symbols, exchanges and timespan of the selection. Columns: exchange, symbol, minute
    (its start, UTC), open, high, low, close (first and last by timestamp, then
    source_sequence), volume decimal(38,8), turnover decimal(38,16) (both exact), vwap
    decimal(18,8) (turnover / volume, null without volume), trades. Minutes without trades have no
    bar.
    """
    condition, values = filters(TRADES, selection)
    return Question(_BARS.format(condition=condition), values)
