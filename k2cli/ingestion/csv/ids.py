"""Ids of rows: the exchange's id, a number or any text, or the row's index in its file.

A number belongs to the series of its exchange and symbol, as in a stream, so the same trade has the
same message id in every source. The same holds for a text: its message id depends only on series
and text. A row without an id is identified by its file's identity, its series and its number in the
file.
"""

import hashlib
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from k2cli.columns import Ints, Unfit
from k2cli.ingestion.csv.times import whole_numbers
from k2cli.records import line_series, message_ids
from k2cli.rejects import Cause

_LONGEST: Final = 128  # characters of an id
_NUMBER: Final = "^[0-9]{1,18}$"
_VERSION: Final = (0xF << 76, 8 << 76)  # mask and value in a UUID: RFC 9562, section 5.8
_VARIANT: Final = (0b11 << 62, 0b10 << 62)


@dataclass(frozen=True, slots=True)
class Labels:
    """A column of few distinct texts."""

    names: Sequence[str]
    codes: Ints

    def column(self) -> pa.StringArray:
        """Expand it to an array."""
        return pa.array(self.names, pa.string()).take(pa.array(self.codes))


@dataclass(frozen=True, slots=True)
class Ids:
    """What identifies rows."""

    message_ids: pa.StringArray
    texts: pa.StringArray  # of the id column: behind the exchange and a dash
    numbers: pa.Int64Array  # null if an id is not a number


@dataclass(frozen=True, slots=True, kw_only=True)
class IdRows:
    """What ids are built from besides the ids in a file."""

    kind: str
    identity: Callable[[], str]  # of the file
    exchanges: Labels
    symbols: Labels
    moments: Ints
    numbers: Ints  # row numbers in the file
    id_series: str = ""  # name of the id series, if it is not that of streams

    @property
    def codes(self) -> Ints:
        """The index of each row's series in `series`."""
        return self.exchanges.codes * len(self.symbols.names) + self.symbols.codes

    @property
    def series(self) -> list[str]:
        """The id series of the rows: one per exchange and symbol."""
        return [
            f"{exchange}/{self.kind}/{symbol}"
            for exchange in self.exchanges.names
            for symbol in self.symbols.names
        ]


def number_ids(rows: IdRows, texts: pa.StringArray) -> Ids:
    """Build ids from a column of numbers.

    Raises:
        Unfit: a value is not a number.
    """
    numbers = whole_numbers(texts)
    column = pa.array(numbers)
    ids = message_ids(rows.series, rows.codes, numbers)
    return Ids(ids, column.cast(pa.string()), column)


def other_ids(rows: IdRows, texts: pa.StringArray) -> Ids:
    """Build ids from numbers that streams do not have, such as ids of aggregate trades.

    They form a separate series, so they are never mistaken for numbers of streams.

    Raises:
        Unfit: a value is not a number.
    """
    numbers = whole_numbers(texts)
    series = [f"{each}/{rows.id_series}" for each in rows.series]
    ids = message_ids(series, rows.codes, numbers)
    plain = pa.array(numbers).cast(pa.string())
    marked = pc.binary_join_element_wise(rows.id_series, plain, "-")
    return Ids(ids, marked, pa.nulls(len(numbers), pa.int64()))


def row_ids(rows: IdRows) -> Ids:
    """Build ids for rows without one, from their time and number in the file."""
    count = len(rows.numbers)
    pair = [pa.array(part).cast(pa.string()) for part in (rows.moments // 1000, rows.numbers)]
    file = rows.identity()
    ids = message_ids([line_series(file, each) for each in rows.series], rows.codes, rows.numbers)
    return Ids(ids, pc.binary_join_element_wise(*pair, "-"), pa.nulls(count, pa.int64()))


def any_ids(rows: IdRows, texts: pa.StringArray) -> Ids:
    """Build ids from a column of numbers, other texts and empty cells.

    The prefix `{exchange}-`, as k2 writes it, is not part of the id.
    """
    try:
        return number_ids(rows, texts)
    except Unfit:
        check_ids(texts)
    texts = _without_exchange(texts, rows.exchanges)
    is_number = pc.match_substring_regex(texts, _NUMBER)
    is_empty = pc.equal(pc.binary_length(texts), 0)
    numbers = pc.if_else(is_number, texts, None).cast(pa.int64())
    ids = message_ids(rows.series, rows.codes, pc.fill_null(numbers, 0).to_numpy())
    is_text = pc.invert(pc.or_(is_number, is_empty))
    ids = pc.replace_with_mask(ids, is_text, _text_ids(rows, texts, is_text))
    texts = pc.if_else(is_number, numbers.cast(pa.string()), texts)
    if pc.any(is_empty).as_py():
        otherwise = row_ids(rows)
        ids = pc.if_else(is_empty, otherwise.message_ids, ids)
        texts = pc.if_else(is_empty, otherwise.texts, texts)
    return Ids(ids, texts, numbers)


def check_ids(texts: pa.StringArray) -> None:
    """Validate a column of ids.

    Raises:
        Unfit: an id is too long, has spaces around it or unprintable characters.
    """
    is_padded = pc.not_equal(texts, pc.utf8_trim_whitespace(texts))
    if pc.any(is_padded).as_py() or not pc.all(pc.utf8_is_printable(texts)).as_py():
        raise Unfit("is not an id", Cause.BAD_TEXT)
    if (pc.max(pc.utf8_length(texts)).as_py() or 0) > _LONGEST:
        raise Unfit(f"is longer than {_LONGEST} characters", Cause.TOO_LONG)


def _without_exchange(texts: pa.StringArray, exchanges: Labels) -> pa.StringArray:
    for code, name in enumerate(exchanges.names):
        is_prefixed = pc.and_(pc.starts_with(texts, f"{name}-"), pa.array(exchanges.codes == code))
        texts = pc.if_else(is_prefixed, pc.utf8_slice_codeunits(texts, len(name) + 1), texts)
    return texts


def _text_ids(rows: IdRows, texts: pa.StringArray, is_text: pa.BooleanArray) -> pa.StringArray:
    """Compute the message ids of texts: UUIDs of version 8 from 122 bits of a SHA-256."""
    series = rows.series
    codes = rows.codes[is_text.to_numpy(zero_copy_only=False)].tolist()
    pairs = zip(codes, texts.filter(is_text).to_pylist(), strict=True)
    return pa.array([_uuid(f"{series[code]}/{text}") for code, text in pairs], pa.string())


def _uuid(name: str) -> str:
    bits = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16])
    for mask, value in (_VERSION, _VARIANT):
        bits = bits & ~mask | value
    return str(uuid.UUID(int=bits))
