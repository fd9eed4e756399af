"""Build the columns that rows share, whether they come from a stream or from the REST API."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from k2cli.columns import Ints, Unfit, decimals, timestamps
from k2cli.ingestion.exchange import Venue
from k2cli.ingestion.symbols import Instrument
from k2cli.records import RecordKind, message_ids
from k2cli.rejects import MAX_SHOWN, Cause

# Indexed by whether the buyer is the maker: then the seller took liquidity.
SIDES: Final = pa.array(["BUY", "SELL"])
BOOLEANS: Final = pa.array(["false", "true"])
BOOLEAN_TEXT: Final[Mapping[object, str]] = {False: "false", True: "true"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RowKeys:
    """What identifies each of some rows, and when it was received."""

    instruments: Sequence[Instrument]
    codes: Ints  # index of each row's instrument
    numbers: Ints
    received_us: Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedColumns:
    """The columns that are built the same way for trades and quotes."""

    codes: Ints  # index of each row's symbol in bases and quotes
    bases: pa.StringArray
    quotes: pa.StringArray
    columns: Mapping[str, pa.Array]


def shared_columns(kind: RecordKind, venue: Venue, rows: RowKeys) -> SharedColumns:
    """Build the columns of a kind that follow from the keys of its rows."""
    instruments, codes, numbers = rows.instruments, rows.codes, rows.numbers
    names = [instrument.symbol for instrument in instruments]
    quotes = pa.array([instrument.quote for instrument in instruments], pa.string())
    series = [f"{venue.exchange}/{kind.name}/{name}" for name in names]
    texts = pa.array(numbers).cast(pa.string())
    indices, same = pa.array(codes), pa.array(np.zeros(len(numbers), dtype=np.int32))
    return SharedColumns(
        codes=codes,
        bases=pa.array([instrument.base for instrument in instruments], pa.string()),
        quotes=quotes,
        columns={
            "message_id": message_ids(series, codes, numbers)
            if series
            else pa.array([], pa.string()),
            kind.id_column: pc.binary_join_element_wise(venue.exchange, texts, "-"),
            "symbol": pa.array(names, pa.string()).take(indices),
            "exchange": pa.array([venue.exchange]).take(same),
            "asset_class": pa.array([venue.asset_class]).take(same),
            "currency": quotes.take(indices),
            "source_sequence": pa.array(numbers),
            "ingestion_timestamp": timestamps(rows.received_us),
            "platform_sequence": pa.nulls(len(numbers), pa.int64()),
        },
    )


def unfit_amount(name: str, value: object, of: pa.DataType) -> Unfit | None:
    """Return why a price or quantity does not fit its column, or None; `name` is its key."""
    try:
        decimals([value], of)
    except (pa.ArrowException, Unfit) as exc:
        cause = exc.cause if isinstance(exc, Unfit) else Cause.WRONG_TYPE
        return Unfit(f"{name} {str(value)[:MAX_SHOWN]!r} does not fit {of}: {exc}", cause)
    return None
