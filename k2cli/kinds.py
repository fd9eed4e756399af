"""The kinds of record: what each is called, where it is stored, and how its rows are identified.

This is the one list of kinds. It needs the standard library only, so that commands and shell
completion know the kinds without loading Arrow; `records.py` adds the schemas. A further kind is a
member here and its .avsc in schemas/.
"""

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What k2 knows of one kind of record beside its schema."""

    schema: str  # schemas/{schema}.avsc
    earlier: tuple[str, ...] = ()  # its older schemas, which are still read
    table: str  # Iceberg table name
    id_column: str  # {exchange}-{the exchange's id}
    sort_by: tuple[str, ...]  # order of the rows within one commit, and of answers
    partition_by: str  # day-partition column
    is_dense: bool  # ids count up by one, so that a hole is suspected loss
    compared: tuple[str, ...]  # columns in which two records of one id may not differ


class KindName(StrEnum):
    """A kind of record, by its name: what users call it, and the last part of a topic's name."""

    traits: Traits

    def __new__(cls, name: str, traits: Traits | None = None) -> "KindName":
        """Make a member; its value is the name. `KindName("trades")` looks one up."""
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
