"""Upgrade records of the first version to the schema of their kind, column by column.

Each field has a `Rule`, which holds both its description and its computation, so the documented
mapping is the applied one.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from k2cli.codec.decode import Decoded, empty_batch
from k2cli.codec.resolve import Faults, amount_cause, unfit_decimals
from k2cli.columns import MOST_DIGITS, Ints, VendorData, to_batch
from k2cli.records import MAX_NUMBER, QUOTES, TRADES, RecordKind, message_ids, schema_text
from k2cli.rejects import Cause, Fault, shown

_TIME: Final = pa.timestamp("us", tz="UTC")
_SEQUENCE: Final = "sequence_number"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Values of all records of the first version, which the records do not contain."""

    currency: str = "AUD"
    side: str = "UNKNOWN"


USUAL: Final = Facts()


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The origin of records, which identifies those without an exchange sequence number."""

    series: Sequence[str]  # for instance kafka/{topic}/{partition}
    codes: Ints  # the index of each record's series in `series`
    numbers: Ints  # of each record in its series: the offset, or the row of a file

    def take(self, indexes: Ints) -> "Origin":
        """Return the origin of some of the records."""
        return replace(self, codes=self.codes[indexes], numbers=self.numbers[indexes])


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """Rows of an earlier schema, and the other inputs of the rules."""

    rows: pa.RecordBatch
    origin: Origin
    facts: Facts
    kind: RecordKind


def _no_faults(_: Earlier) -> Faults:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How one target field of a kind is computed."""

    target: str
    sources: tuple[str, ...]  # the source fields in the earlier record
    how: str
    make: Callable[[Earlier], pa.Array] = field(repr=False)
    check: Callable[[Earlier], Faults] = field(repr=False, default=_no_faults)


@dataclass(frozen=True, slots=True, kw_only=True)
class Upgrade:
    """How records of an earlier schema become rows of a kind."""

    schema: str  # schemas/{schema}.avsc
    kind: RecordKind
    rules: tuple[Rule, ...]  # one per column of the kind, in order
    avro: Mapping[str, Any] = field(compare=False, repr=False)  # the .avsc

    def apply(self, decoded: Decoded, origin: Origin, facts: Facts) -> Decoded:
        """Convert rows of the earlier schema to the kind's; rows that do not fit are rejects.

        `origin` is the origin of `decoded.rows`.
        """
        earlier = Earlier(rows=decoded.rows, origin=origin, facts=facts, kind=self.kind)
        faults: dict[int, Fault] = {}
        for rule in self.rules:
            faults = {**rule.check(earlier), **faults}
        if faults:
            decoded = decoded.without(faults)
            kept = np.setdiff1d(np.arange(len(origin.numbers)), list(faults))
            earlier = replace(earlier, rows=decoded.rows, origin=origin.take(kept))
        if not decoded.rows.num_rows:
            return replace(decoded, rows=empty_batch(self.kind.arrow))
        columns = {rule.target: rule.make(earlier) for rule in self.rules}
        return replace(decoded, rows=to_batch(self.kind, columns))


def _fault(field: str, value: pa.Scalar, brief: str, cause: Cause) -> Fault:
    text = shown(value.as_py())
    reason = f"{field} {text} {brief}"
    return Fault(reason=reason, cause=cause, field=field, value=text, brief=brief)


def _copied(name: str, source: str = "") -> Rule:
    source = source or name
    return Rule(
        target=name, sources=(source,), how="unchanged", make=lambda earlier: earlier.rows[source]
    )


def _decimal(kind: RecordKind, name: str, source: str) -> Rule:
    """Convert a decimal or integer to an exact price or quantity."""
    of = kind.type_of(name)
    wide = pa.decimal128(MOST_DIGITS, of.scale)  # holds every long and every price, exactly

    def check(earlier: Earlier) -> Faults:
        values = earlier.rows[source]
        is_unfit = unfit_decimals(values.cast(wide), of.precision)
        brief = f"is negative or does not fit {of}"
        return {
            row: _fault(source, values[row], brief, amount_cause(values[row]))
            for row in np.flatnonzero(is_unfit).tolist()
        }

    return Rule(
        target=name,
        sources=(source,),
        how=f"exactly, as decimal({of.precision},{of.scale}); a value that is negative or does not"
        " fit is rejected",
        make=lambda earlier: earlier.rows[source].cast(wide).cast(of),
        check=check,
    )


def _time(name: str, source: str) -> Rule:
    return Rule(
        target=name,
        sources=(source,),
        how="milliseconds to microseconds",
        make=lambda earlier: earlier.rows[source].cast(_TIME),
    )


def _constant(name: str, value: str | list[str] | None, how: str = "") -> Rule:
    return Rule(
        target=name,
        sources=(),
        how=how or f"always {value if isinstance(value, str) else json.dumps(value)}",
        make=lambda earlier: _repeated(earlier, name, value),
    )


def _fact(name: str) -> Rule:
    return Rule(
        target=name,
        sources=(),
        how=f"set by the option for all records; {getattr(USUAL, name)} by default",
        make=lambda earlier: _repeated(earlier, name, getattr(earlier.facts, name)),
    )


def _repeated(earlier: Earlier, name: str, value: object) -> pa.Array:
    scalar = pa.scalar(value, earlier.kind.arrow.field(name).type)
    return pa.repeat(scalar, earlier.rows.num_rows)


def _message_id() -> Rule:
    """Compute the message ids; with a sequence number, the same as from a stream or file."""

    def make(earlier: Earlier) -> pa.Array:
        rows, origin = earlier.rows, earlier.origin
        kind = pa.scalar(earlier.kind.name)
        names = pc.binary_join_element_wise(rows["exchange"], kind, rows["symbol"], "/")
        encoded = names.dictionary_encode()
        series = encoded.dictionary.to_pylist()
        sequence = rows[_SEQUENCE]
        is_there = sequence.is_valid().to_numpy(zero_copy_only=False)
        return message_ids(
            [*series, *origin.series],
            np.where(is_there, encoded.indices.to_numpy(), len(series) + origin.codes),
            np.where(is_there, sequence.fill_null(0).to_numpy(), origin.numbers),
        )

    def check(earlier: Earlier) -> Faults:
        numbers = earlier.rows[_SEQUENCE].fill_null(0).to_numpy()
        is_unfit = (numbers < 0) | (numbers > MAX_NUMBER)
        brief = f"is not within 0 to {MAX_NUMBER}"
        return {
            row: _fault(_SEQUENCE, earlier.rows[_SEQUENCE][row], brief, Cause.OUT_OF_RANGE)
            for row in np.flatnonzero(is_unfit).tolist()
        }

    return Rule(
        target="message_id",
        sources=("exchange", "symbol", _SEQUENCE),
        how=f"UUID of exchange, kind, symbol and {_SEQUENCE}; without one, of the record's"
        " topic, partition and offset",
        make=make,
        check=check,
    )


def _record_id(name: str) -> Rule:
    def make(earlier: Earlier) -> pa.Array:
        rows = earlier.rows
        texts = rows[_SEQUENCE].cast(pa.string())
        if texts.null_count:
            numbers = (
                rows["exchange_timestamp"].cast(pa.int64()),
                pa.array(earlier.origin.numbers),
            )
            moment, index = (each.cast(pa.string()) for each in numbers)
            texts = pc.coalesce(texts, pc.binary_join_element_wise(moment, index, "-"))
        return pc.binary_join_element_wise(rows["exchange"], texts, "-")

    return Rule(
        target=name,
        sources=("exchange", _SEQUENCE, "exchange_timestamp"),
        how=f"{{exchange}}-{{{_SEQUENCE}}}; without one, {{exchange}}-{{exchange_timestamp}}-"
        "{offset}",
        make=make,
    )


def _vendor_data(*sources: str) -> Rule:
    def make(earlier: Earlier) -> pa.Array:
        vendor = VendorData(earlier.rows.num_rows)
        for source in sources:
            texts = earlier.rows[source].cast(pa.string())
            is_there = texts.is_valid().to_numpy(zero_copy_only=False)
            vendor.add(source, texts, np.where(is_there, np.arange(len(texts)), -1))
        return vendor.build()

    return Rule(
        target="vendor_data",
        sources=sources,
        how="as text, one entry for each that is not null",
        make=make,
    )


_TRADE_RULES: Final = (
    _message_id(),
    _record_id("trade_id"),
    _copied("symbol"),
    _copied("exchange"),
    _constant("asset_class", "equities"),
    _time("timestamp", "exchange_timestamp"),
    _decimal(TRADES, "price", "price"),
    _decimal(TRADES, "quantity", "volume"),
    _fact("currency"),
    _fact("side"),
    _constant("trade_conditions", []),
    _copied("source_sequence", _SEQUENCE),
    _time("ingestion_timestamp", "ingestion_timestamp"),
    _constant("platform_sequence", None, "the offset of a Kafka message; otherwise null"),
    _vendor_data("company_id", "qualifiers", "venue", "buyer_id"),
)
_QUOTE_RULES: Final = (
    _message_id(),
    _record_id("quote_id"),
    _copied("symbol"),
    _copied("exchange"),
    _constant("asset_class", "equities"),
    _time("timestamp", "exchange_timestamp"),
    _decimal(QUOTES, "bid_price", "bid_price"),
    _decimal(QUOTES, "bid_quantity", "bid_volume"),
    _decimal(QUOTES, "ask_price", "ask_price"),
    _decimal(QUOTES, "ask_quantity", "ask_volume"),
    _fact("currency"),
    _copied("source_sequence", _SEQUENCE),
    _time("ingestion_timestamp", "ingestion_timestamp"),
    _constant("platform_sequence", None, "the offset of a Kafka message; otherwise null"),
    _vendor_data("company_id"),
)


def _upgrade(schema: str, kind: RecordKind, rules: tuple[Rule, ...]) -> Upgrade:
    return Upgrade(schema=schema, kind=kind, rules=rules, avro=json.loads(schema_text(schema)))


UPGRADES: Final[Mapping[str, Upgrade]] = {
    upgrade.schema: upgrade
    for upgrade in (
        _upgrade("trade_v1", TRADES, _TRADE_RULES),
        _upgrade("quote_v1", QUOTES, _QUOTE_RULES),
    )
}
