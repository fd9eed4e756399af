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
from k2cli.columns import MAX_DIGITS, Ints, VendorData, to_batch
from k2cli.records import MAX_NUMBER, QUOTES, TRADES, RecordKind, message_ids, schema_text
from k2cli.rejects import Cause, Fault, shown

_TIME: Final = pa.timestamp("us", tz="UTC")
_SEQUENCE: Final = "sequence_number"


@dataclass(frozen=True, slots=True, kw_only=True)
class V1Defaults:
    """Values for the fields that records of the v1 schemas lack."""

    currency: str = "AUD"
    side: str = "UNKNOWN"


V1_DEFAULTS: Final = V1Defaults()


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
class V1Rows:
    """Rows of a v1 schema, and the other inputs of the rules."""

    rows: pa.RecordBatch
    origin: Origin
    defaults: V1Defaults
    kind: RecordKind


def _no_faults(_: V1Rows) -> Faults:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How one target field of a kind is computed."""

    target: str
    sources: tuple[str, ...]  # the source fields in the v1 record
    how: str
    make: Callable[[V1Rows], pa.Array] = field(repr=False)
    check: Callable[[V1Rows], Faults] = field(repr=False, default=_no_faults)


@dataclass(frozen=True, slots=True, kw_only=True)
class Upgrade:
    """How records of a v1 schema become rows of a kind."""

    schema: str  # schemas/{schema}.avsc
    kind: RecordKind
    rules: tuple[Rule, ...]  # one per column of the kind, in order
    avro: Mapping[str, Any] = field(compare=False, repr=False)  # the .avsc

    def apply(self, decoded: Decoded, origin: Origin, defaults: V1Defaults) -> Decoded:
        """Convert rows of the v1 schema to the kind's; rows that do not fit are rejects.

        `origin` is the origin of `decoded.rows`.
        """
        v1 = V1Rows(rows=decoded.rows, origin=origin, defaults=defaults, kind=self.kind)
        faults: dict[int, Fault] = {}
        for rule in self.rules:
            faults = {**rule.check(v1), **faults}
        if faults:
            decoded = decoded.without(faults)
            kept = np.setdiff1d(np.arange(len(origin.numbers)), list(faults))
            v1 = replace(v1, rows=decoded.rows, origin=origin.take(kept))
        if not decoded.rows.num_rows:
            return replace(decoded, rows=empty_batch(self.kind.arrow))
        columns = {rule.target: rule.make(v1) for rule in self.rules}
        return replace(decoded, rows=to_batch(self.kind, columns))


def _fault(field: str, value: pa.Scalar, brief: str, cause: Cause) -> Fault:
    text = shown(value.as_py())
    reason = f"{field} {text} {brief}"
    return Fault(reason=reason, cause=cause, field=field, value=text, brief=brief)


def _copied(name: str, source: str = "") -> Rule:
    source = source or name
    return Rule(target=name, sources=(source,), how="unchanged", make=lambda v1: v1.rows[source])


def _decimal(kind: RecordKind, name: str, source: str) -> Rule:
    """Convert a decimal or integer to an exact price or quantity."""
    of = kind.type_of(name)
    wide = pa.decimal128(MAX_DIGITS, of.scale)  # holds every long and every price, exactly

    def check(v1: V1Rows) -> Faults:
        values = v1.rows[source]
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
        make=lambda v1: v1.rows[source].cast(wide).cast(of),
        check=check,
    )


def _time(name: str, source: str) -> Rule:
    return Rule(
        target=name,
        sources=(source,),
        how="milliseconds to microseconds",
        make=lambda v1: v1.rows[source].cast(_TIME),
    )


def _constant(name: str, value: str | list[str] | None, how: str = "") -> Rule:
    return Rule(
        target=name,
        sources=(),
        how=how or f"always {value if isinstance(value, str) else json.dumps(value)}",
        make=lambda v1: _repeated(v1, name, value),
    )


def _default(name: str) -> Rule:
    return Rule(
        target=name,
        sources=(),
        how=f"set by the option for all records; {getattr(V1_DEFAULTS, name)} by default",
        make=lambda v1: _repeated(v1, name, getattr(v1.defaults, name)),
    )


def _repeated(v1: V1Rows, name: str, value: object) -> pa.Array:
    scalar = pa.scalar(value, v1.kind.arrow.field(name).type)
    return pa.repeat(scalar, v1.rows.num_rows)


def _message_id() -> Rule:
    """Compute the message ids; with a sequence number, the same as from a stream or file."""

    def make(v1: V1Rows) -> pa.Array:
        rows, origin = v1.rows, v1.origin
        kind = pa.scalar(v1.kind.name)
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

    def check(v1: V1Rows) -> Faults:
        numbers = v1.rows[_SEQUENCE].fill_null(0).to_numpy()
        is_unfit = (numbers < 0) | (numbers > MAX_NUMBER)
        brief = f"is not within 0 to {MAX_NUMBER}"
        return {
            row: _fault(_SEQUENCE, v1.rows[_SEQUENCE][row], brief, Cause.OUT_OF_RANGE)
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
    def make(v1: V1Rows) -> pa.Array:
        rows = v1.rows
        texts = rows[_SEQUENCE].cast(pa.string())
        if texts.null_count:
            numbers = (
                rows["exchange_timestamp"].cast(pa.int64()),
                pa.array(v1.origin.numbers),
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
    def make(v1: V1Rows) -> pa.Array:
        vendor = VendorData(v1.rows.num_rows)
        for source in sources:
            texts = v1.rows[source].cast(pa.string())
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
    _default("currency"),
    _default("side"),
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
    _default("currency"),
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
