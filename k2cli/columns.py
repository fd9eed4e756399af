"""Build whole columns: exact decimals, times, and the map of vendor data.

A column either fits as a whole or raises `Unfit` (or an Arrow error); the caller finds the bad
value.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import UNSET

from k2cli.records import RecordKind
from k2cli.rejects import Cause, Fault

MICROSECONDS_FROM: Final = 10**15  # times from here on are microseconds, below milliseconds
YEAR_1_US: Final = -62_135_596_800_000_000
YEAR_9999_US: Final = 253_402_300_799_999_999
MAX_DIGITS: Final = 38  # digits of a decimal128

Ints = npt.NDArray[np.int64]


_DECIMAL_TEXT: Final = re.compile(r"([0-9]*)(?:\.([0-9]*))?")
_NEGATIVE_TEXT: Final = re.compile(r"-(?:[0-9]+\.?[0-9]*|\.[0-9]+)")


class Unfit(Exception):
    """A column contains a value that does not fit its type, with the reason and cause."""

    def __init__(self, reason: str, cause: Cause) -> None:
        super().__init__(reason)
        self.cause: Final = cause


class UnfitField(Unfit):
    """A fault of one field, fully described."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.reason, fault.cause)
        self.fault: Final = fault


class VendorData:
    """Builds a map<string, string> column from text columns, one entry per column and row."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._keys: list[str] = []
        self._pools: list[pa.Array] = []
        self._indexes: list[Ints] = []  # in the pool; below 0: the row has no entry

    def add(self, key: str, pool: pa.Array, indexes: Ints) -> None:
        """Add an entry whose value in each row is `pool[index]`."""
        self._keys.append(key)
        self._pools.append(pool)
        self._indexes.append(indexes)

    def add_numbers(self, key: str, numbers: Ints) -> None:
        """Add an entry with a number as text in every row."""
        self.add(key, pa.array(numbers).cast(pa.string()), np.arange(self._count))

    def add_texts(self, key: str, values: Sequence[object]) -> None:
        """Add an entry with a few distinct values; None and UNSET omit it in the row."""
        if values.count(UNSET) == len(values):
            return
        distinct = dict.fromkeys(values)
        distinct.pop(None, None)
        distinct.pop(UNSET, None)
        codes: dict[object, int] = {value: code for code, value in enumerate(distinct)}
        pool = pa.array([str(value) for value in distinct], pa.string())
        self.add(key, pool, np.array([codes.get(value, -1) for value in values], dtype=np.int64))

    def build(self) -> pa.MapArray:
        """Return the column; entries are in the order of their addition."""
        width = len(self._keys)
        starts = np.cumsum([0, *(len(pool) for pool in self._pools)])[:width]
        indexes = np.stack(self._indexes, axis=1)
        is_there = indexes >= 0
        values = indexes + starts
        keys = np.broadcast_to(np.arange(width), indexes.shape)
        if is_there.all():
            offsets = np.arange(0, width * (self._count + 1), width, dtype=np.int32)
            values, keys = values.ravel(), keys.ravel()
        else:
            offsets = np.zeros(self._count + 1, dtype=np.int32)
            np.cumsum(is_there.sum(axis=1), out=offsets[1:])
            values, keys = values[is_there], keys[is_there]
        return pa.MapArray.from_arrays(
            pa.array(offsets),
            pa.array(self._keys).take(pa.array(keys)),
            pa.concat_arrays(self._pools).take(pa.array(values)),
        )


def to_batch(kind: RecordKind, columns: Mapping[str, pa.Array]) -> pa.RecordBatch:
    """Build a batch of the kind's schema from columns."""
    return pa.RecordBatch.from_arrays(
        [columns[name] for name in kind.arrow.names], schema=kind.arrow
    )


def join_batches(batches: Sequence[pa.RecordBatch]) -> pa.Table:
    """Join rows of a kind; some may have more columns than others, or wider ones."""
    tables = [pa.Table.from_batches([batch]) for batch in batches]
    return pa.concat_tables(tables, promote_options="permissive")


def integers(values: Sequence[object]) -> Ints:
    """Build a column of integers; UNSET raises TypeError."""
    return np.array(values, dtype=np.int64)


def decimals(values: Sequence[object], of: pa.DataType) -> pa.Array:
    """Build an exact column of this type from texts: digits, at most one dot."""
    return decimals_of(pa.array(values, pa.string()), of)


def decimals_of(texts: pa.StringArray, of: pa.DataType) -> pa.Array:
    """Build an exact column of this type from a column of texts."""
    strange = characters(texts).translate(None, b"0123456789.")
    # Arrow's parser must not see an exponent or a long fraction: it reads out of bounds.
    if strange or (pc.max(pc.binary_length(texts)).as_py() or 0) > MAX_DIGITS:
        cause = _cause_of(texts, of)
        is_negative = cause is Cause.NEGATIVE or (len(texts) > 1 and strange == b"-")
        raise Unfit("negative" if is_negative else "not a plain number", cause)
    try:
        return texts.cast(of)
    except pa.ArrowException as exc:
        raise Unfit(str(exc), _cause_of(texts, of)) from exc


def _cause_of(texts: pa.StringArray, of: pa.DataType) -> Cause:
    """Return why a column of texts does not fit; for several texts without details."""
    if len(texts) != 1:
        return Cause.NOT_A_NUMBER
    return why_no_decimal(texts[0].as_py(), of).cause


def why_no_decimal(text: str, of: pa.DataType) -> Unfit:
    """Return why a text is not a non-negative decimal of this type without exponent."""
    if not text:
        return Unfit("is empty", Cause.MISSING)
    if _NEGATIVE_TEXT.fullmatch(text):
        return Unfit("is negative", Cause.NEGATIVE)
    match = _DECIMAL_TEXT.fullmatch(text)
    if match is None or text == ".":
        return Unfit("is not a plain number", Cause.NOT_A_NUMBER)
    if len((match[2] or "").rstrip("0")) > of.scale:
        return Unfit(f"has more than {of.scale} decimals", Cause.TOO_MANY_DECIMALS)
    whole = of.precision - of.scale
    if len(match[1].lstrip("0")) > whole:
        return Unfit(f"has more than {whole} digits before the point", Cause.DECIMAL_OVERFLOW)
    return Unfit("has too many digits", Cause.DECIMAL_OVERFLOW)


def characters(texts: pa.StringArray) -> bytes:
    """Return all bytes of a column of texts, one value after the other."""
    _, offsets, data = texts.buffers()
    if not data or not len(texts):
        return b""
    ends = np.frombuffer(offsets, dtype=np.int32)[texts.offset : texts.offset + len(texts) + 1]
    return bytes(data[int(ends[0]) : int(ends[-1])].to_pybytes())


def microseconds(times: Ints) -> Ints:
    """Convert times to microseconds, each by its magnitude."""
    times_us = np.where(times >= MICROSECONDS_FROM, times, times * 1000)
    if len(times_us) and times_us.max() > YEAR_9999_US:
        raise Unfit("later than the year 9999", Cause.TIME_OUT_OF_RANGE)
    return times_us


def timestamps(times_us: Ints) -> pa.Array:
    """Build a column of UTC times."""
    return pa.array(times_us).cast(pa.timestamp("us", tz="UTC"))
