"""The record kinds: their names, tables, and how their rows are identified.

This is the only list of kinds. It needs only the standard library, so commands and shell completion
can use it without loading Arrow; `records.py` adds the schemas. To add a kind, add a member here
and its .avsc in schemas/.
"""

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """The traits of one record kind, without its schema."""

    schema: str  # schemas/{schema}.avsc
    earlier: tuple[str, ...] = ()  # older schemas that can still be read
    table: str  # Iceberg table name
    id_column: str  # {exchange}-{the exchange's id}
    sort_by: tuple[str, ...]  # order of the rows within one commit, and of answers
    partition_by: str  # day-partition column
    is_dense: bool  # ids increase by one, so a gap is suspected loss
    compared: tuple[str, ...]  # columns in which two records of one id may not differ


class KindName(StrEnum):
    """The name of a record kind, for users and as the last part of topic names."""

    traits: Traits

    def __new__(cls, name: str, traits: Traits | None = None) -> "KindName":
        """Create a member; its value is the name. `KindName("trades")` looks one up."""
        assert traits is not None, "every kind has traits"
        kind = str.__new__(cls, name)
        kind._value_ = name
        kind.traits = traits
        return kind

    TRADES = (
        "trades",
        Traits(
            schema="trade_v2",
            earlier=("trade_v1",),
            table="trades_v2",
            id_column="trade_id",
            sort_by=("symbol", "timestamp", "source_sequence"),
            partition_by="timestamp",
            is_dense=True,
            compared=("timestamp", "price", "quantity", "side"),
        ),
    )
    QUOTES = (
        "quotes",
        Traits(
            schema="quote_v2",
            earlier=("quote_v1",),
            table="quotes_v2",
            id_column="quote_id",
            sort_by=("symbol", "timestamp", "source_sequence"),
            partition_by="timestamp",
            is_dense=False,
            compared=("timestamp", "bid_price", "bid_quantity", "ask_price", "ask_quantity"),
        ),
    )
