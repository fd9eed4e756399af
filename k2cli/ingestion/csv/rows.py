"""Columns of text into rows of a record kind, whole columns at a time.

Where a column does not fit it is halved until the rows that do not fit stand alone; those come
back with the reason, all others become rows.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from k2cli.columns import Ints, Unfit, VendorData, decimals_of, timestamps, to_batch
from k2cli.errors import BadData, UsageError
from k2cli.ingestion.binance.symbols import Instrument, Market, parse_symbol
from k2cli.ingestion.csv.ids import Labels, any_ids, check_ids, number_ids, place_ids
from k2cli.ingestion.csv.ids import Rows as IdRows
from k2cli.ingestion.csv.layout import ASSET_CLASSES, Layout
from k2cli.ingestion.csv.market import markets_of_symbol, plain_name
from k2cli.ingestion.csv.times import times_us, whole_numbers
from k2cli.symbols import normalize_symbol

_HALVE_ABOVE: Final = 32  # rows; fewer are tried one by one
_LONGEST_NAME: Final = 64  # characters of a symbol, exchange or currency
_SHOWN: Final = 80  # characters of a value in a reason
_DECIMAL_TEXT: Final = re.compile(r"([0-9]*)(?:\.([0-9]*))?")
_NEGATIVE_TEXT: Final = re.compile(r"-[0-9]*\.?[0-9]*")
_NO_CONDITIONS: Final = pa.array([], pa.string())

Cells = Sequence[pa.StringArray]
_Check = Callable[[Cells, int], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What holds for every row of a file, and so stands in none of its columns."""

    zone: str
    values: Mapping[str, str] = field(default_factory=dict)  # symbol, exchange, ...
    entries: Mapping[str, str] = field(default_factory=dict)  # of vendor_data
    identity: Callable[[], str] = str  # of the file, where its rows have no ids
    market: Market | None = None  # of a layout of the exchange's own files
    home: Path | None = None  # the folder with what the exchange said last of its symbols


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Where the columns of one file are: what a layout comes to with the file's own names."""

    names: tuple[str, ...]
    fields: Mapping[str, int]
    vendor: tuple[tuple[str, int], ...]
    lower: frozenset[int]


@dataclass(frozen=True, slots=True)
class Built:
    """The rows of a block, and why others are none, by their place in it."""

    rows: Sequence[pa.RecordBatch]
    faults: Mapping[int, str]


def find_columns(layout: Layout, names: Sequence[str]) -> Columns:
    """Find the columns that a layout names among a file's.

    Raises:
        BadData: a needed column is not there, or a name is there twice.
    """
    names = tuple(name or f"column_{number}" for number, name in enumerate(names, start=1))
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise BadData(f"the header names {twice!r} twice")
    fields: dict[str, int] = {}
    for name in layout.fields:
        places = [_find(names, candidate) for candidate in layout.candidates(name)]
        there = [place for place in places if place is not None]
        if there:
            fields[name] = there[0]
    for name in (*layout.decimals, *_time_fields(layout.fields)):
        if name not in fields:
            raise BadData(
                f"no column for {name} among {', '.join(names)[:200]}",
                hint=f"name it with --map {name}=COLUMN",
            )
    return Columns(
        names=names,
        fields=fields,
        vendor=_vendor_columns(layout, names, fields),
        lower=frozenset(p for n in layout.lower_case if (p := _find(names, n)) is not None),
    )


def _vendor_columns(
    layout: Layout, names: Sequence[str], fields: Mapping[str, int]
) -> tuple[tuple[str, int], ...]:
    found = [(key, _find(names, column)) for key, column in layout.vendor_data.items()]
    vendor = [(key, place) for key, place in found if place is not None]
    if layout.rest:
        used = {*fields.values(), *(place for _, place in vendor)}
        vendor += [(name, place) for place, name in enumerate(names) if place not in used]
    return tuple(vendor)


def _find(names: Sequence[str], wanted: str) -> int | None:
    """Find a column by its name, or else by the only name that differs in case and signs."""
    if wanted in names:
        return names.index(wanted)
    plain = [place for place, name in enumerate(names) if plain_name(name) == plain_name(wanted)]
    return plain[0] if len(plain) == 1 and plain_name(wanted) else None


class RowBuilder:
    """Turn the columns of one file into rows."""

    def __init__(self, layout: Layout, columns: Columns, facts: Facts) -> None:
        self._layout = layout
        self._columns = columns
        self._facts = facts
        self.kind: Final = layout.record
        self._instruments: dict[str, Instrument] = {}

    def build(self, cells: Cells, numbers: Ints, received_us: int) -> Built:
        """Build rows; `numbers` are those of the rows in the file, for rows without an id."""
        if not len(numbers):
            return Built([], {})
        try:
            return Built([self._rows(cells, numbers, received_us)], {})
        except Unfit:
            faults = self._faults(cells, len(numbers))
        kept = np.setdiff1d(np.arange(len(numbers)), list(faults))
        fit = [column.take(pa.array(kept)) for column in cells]
        rows: list[pa.RecordBatch] = []

        def add(start: int, count: int) -> None:
            part = [column.slice(start, count) for column in fit]
            rows.append(self._rows(part, numbers[kept[start : start + count]], received_us))

        # What fits row by row need not fit together: times with and without an offset.
        faults |= {int(kept[place]): why for place, why in _each_that_fails(add, len(kept))}
        return Built(rows, faults)

    def _faults(self, cells: Cells, count: int) -> dict[int, str]:
        """Find the rows that do not fit, a column at a time."""
        faults: dict[int, str] = {}
        for names, check in self._checks():
            for place, why in self._faults_of(check, names, cells, count):
                faults.setdefault(place, why)
        return faults

    def _faults_of(
        self, check: _Check, names: Sequence[str], cells: Cells, count: int
    ) -> Iterator[tuple[int, str]]:
        places = [self._columns.fields[name] for name in names]
        part = list(cells)

        def attempt(start: int, size: int) -> None:
            for place in places:
                part[place] = cells[place].slice(start, size)
            check(part, size)

        return _each_that_fails(attempt, count)

    def _checks(self) -> Iterator[tuple[Sequence[str], _Check]]:
        """Yield what can fail, with the fields that it looks at."""
        there = self._columns.fields
        yield _time_fields(there), lambda cells, _: self._times(cells)
        for name in self._layout.decimals:
            yield (name,), self._decimals_check(name)
        by_field: dict[str, _Check] = {
            "id": lambda cells, _: self._check_ids(cells),
            "source_sequence": lambda cells, _: self._sequence(cells, None),
            "symbol": self._symbols,
            "exchange": lambda cells, count: self._labels("exchange", cells, count),
            "asset_class": self._asset_classes,
            "currency": lambda cells, count: self._labels("currency", cells, count),
            "side": self._sides,
        }
        for name, check in by_field.items():
            if name in there:
                yield (name,), check

    def _rows(self, cells: Cells, numbers: Ints, received_us: int) -> pa.RecordBatch:
        cells = [
            pc.ascii_lower(column) if place in self._columns.lower else column
            for place, column in enumerate(cells)
        ]
        count, layout = len(numbers), self._layout
        symbols = self._symbols(cells, count)
        moments = self._times(cells)
        ids = IdRows(
            kind=self.kind.name,
            identity=self._facts.identity,
            exchanges=self._labels("exchange", cells, count),
            symbols=symbols,
            moments=moments,
            places=numbers,
        )
        columns: dict[str, pa.Array] = {
            **self._ids(cells, ids),
            "symbol": symbols.column(),
            "exchange": ids.exchanges.column(),
            "asset_class": self._asset_classes(cells, count).column(),
            "currency": self._currencies(cells, symbols, count).column(),
            "timestamp": timestamps(moments),
            "ingestion_timestamp": timestamps(np.full(count, received_us, dtype=np.int64)),
            "platform_sequence": pa.nulls(count, pa.int64()),
            "vendor_data": self._vendor_data(cells, symbols, count),
        }
        for name in layout.decimals:
            columns[name] = self._decimals(name, cells)
        if layout.kind == "trades":
            columns["side"] = self._sides(cells, count)
            columns["trade_conditions"] = pa.ListArray.from_arrays(
                pa.array(np.zeros(count + 1, dtype=np.int32)), _NO_CONDITIONS
            )
        return to_batch(self.kind, columns)

    def _unfit(self, name: str, cells: Cells, reason: object) -> Unfit:
        """Say which column does not fit, and what it holds where the row stands alone."""
        place = self._columns.fields[name]
        shown = ""
        if len(cells[place]) == 1:
            shown = f" {cells[place][0].as_py()[:_SHOWN]!r}"
        return Unfit(f"{self._columns.names[place]}{shown} {reason}")

    def _decimals(self, name: str, cells: Cells) -> pa.Array:
        texts, of = cells[self._columns.fields[name]], self.kind.type_of(name)
        try:
            return decimals_of(texts, of)
        except (Unfit, pa.ArrowException) as exc:
            reason = _why_no_decimal(texts[0].as_py(), of) if len(texts) == 1 else "does not fit"
            raise self._unfit(name, cells, reason) from exc

    def _decimals_check(self, name: str) -> _Check:
        return lambda cells, _: self._decimals(name, cells)

    def _times(self, cells: Cells) -> Ints:
        fields = self._columns.fields
        names = _time_fields(fields)
        parts = [cells[fields[name]] for name in names]
        try:
            return times_us(self._layout.time, self._facts.zone, parts)
        except Unfit as exc:
            if len(parts) == 1 or len(parts[0]) > 1:
                raise self._unfit(names[0], cells, exc) from exc
            both = " ".join(part[0].as_py()[:_SHOWN] for part in parts)
            raise Unfit(f"date and time {both!r}: {exc}") from exc

    def _numbers(self, name: str, cells: Cells, texts: pa.StringArray) -> Ints:
        try:
            return whole_numbers(texts)
        except Unfit as exc:
            raise self._unfit(name, cells, exc) from exc

    def _ids(self, cells: Cells, rows: IdRows) -> dict[str, pa.Array]:
        place = self._columns.fields.get("id")
        if place is None:
            ids = place_ids(rows)
        elif self._layout.market:
            ids = number_ids(rows, cells[place])
        else:
            ids = any_ids(rows, cells[place])
        return {
            "message_id": ids.message_ids,
            self.kind.id_column: pc.binary_join_element_wise(
                rows.exchanges.column(), ids.texts, "-"
            ),
            "source_sequence": self._sequence(cells, ids.numbers),
        }

    def _check_ids(self, cells: Cells) -> None:
        texts = cells[self._columns.fields["id"]]
        if self._layout.market:
            self._numbers("id", cells, texts)
        try:
            check_ids(texts)
        except Unfit as exc:
            raise self._unfit("id", cells, exc) from exc

    def _sequence(self, cells: Cells, otherwise: pa.Array) -> pa.Array:
        place = self._columns.fields.get("source_sequence")
        if place is None:
            return otherwise
        texts = cells[place]
        is_there = pc.greater(pc.binary_length(texts), 0)
        if pc.all(is_there).as_py():
            return pa.array(self._numbers("source_sequence", cells, texts))
        filled = pc.if_else(is_there, texts, "0")
        numbers = self._numbers("source_sequence", cells, filled)
        return pc.if_else(is_there, pa.array(numbers), pa.scalar(None, pa.int64()))

    def _labels(self, name: str, cells: Cells, count: int) -> Labels:
        """Return a column of names, or the one name that holds for the whole file."""
        if name in self._facts.values:
            return Labels([self._facts.values[name]], np.zeros(count, dtype=np.int64))
        encoded = cells[self._columns.fields[name]].dictionary_encode()
        names = encoded.dictionary.to_pylist()
        for text in names:
            if not text or text != text.strip() or not text.isprintable():
                raise self._unfit(name, cells, "is not a name" if text else "is empty")
            if len(text) > _LONGEST_NAME:
                raise self._unfit(name, cells, f"is longer than {_LONGEST_NAME} characters")
        return Labels(names, encoded.indices.to_numpy().astype(np.int64))

    def _symbols(self, cells: Cells, count: int) -> Labels:
        labels = self._labels("symbol", cells, count)
        if not self._layout.market:
            return Labels([normalize_symbol(name) for name in labels.names], labels.codes)
        try:
            names = [self._instrument(name).symbol for name in labels.names]
        except UsageError as exc:
            raise self._unfit("symbol", cells, f"is unknown: {exc}") from exc
        return Labels(names, labels.codes)

    def _instrument(self, text: str) -> Instrument:
        instrument = self._instruments.get(text)
        if instrument is None:
            market = self._facts.market
            assert market is not None  # only such layouts split symbols
            if market not in markets_of_symbol(text):
                raise UsageError(f"{text[:_SHOWN]} is not of the market {market}")
            instrument = parse_symbol(text, market, self._facts.home)
            self._instruments |= {text: instrument, instrument.symbol: instrument}
        return instrument

    def _asset_classes(self, cells: Cells, count: int) -> Labels:
        labels = self._labels("asset_class", cells, count)
        if not set(labels.names) <= set(ASSET_CLASSES):
            raise self._unfit("asset_class", cells, f"is none of {', '.join(ASSET_CLASSES)}")
        return labels

    def _currencies(self, cells: Cells, symbols: Labels, count: int) -> Labels:
        if "currency" in self._facts.values or "currency" in self._columns.fields:
            return self._labels("currency", cells, count)
        return Labels([self._instrument(name).quote for name in symbols.names], symbols.codes)

    def _sides(self, cells: Cells, count: int) -> pa.StringArray:
        values = dict(self._layout.side)
        other = values.pop("other", None)
        if "side" not in self._columns.fields:
            return pa.array(["UNKNOWN"]).take(pa.array(np.zeros(count, dtype=np.int32)))
        texts = pc.ascii_lower(cells[self._columns.fields["side"]])
        codes = pc.index_in(texts, value_set=pa.array(list(values), pa.string()))
        sides = pa.array([*values.values(), other], pa.string())
        if codes.null_count:
            if other is None:
                raise self._unfit("side", cells, f"is none of {', '.join(values)}")
            codes = pc.fill_null(codes, len(values))
        return sides.take(codes)

    def _vendor_data(self, cells: Cells, symbols: Labels, count: int) -> pa.Array:
        vendor = VendorData(count)
        for key, text in self._facts.entries.items():
            vendor.add(key, pa.array([text]), np.zeros(count, dtype=np.int64))
        for key, place in self._columns.vendor:
            texts, rows = cells[place], np.arange(count)
            is_empty = pc.equal(pc.binary_length(texts), 0)
            if pc.any(is_empty).as_py():
                rows = np.where(is_empty.to_numpy(zero_copy_only=False), -1, rows)
            vendor.add(key, texts, rows)
        if self._layout.market:
            instruments = [self._instrument(name) for name in symbols.names]
            vendor.add("base_asset", pa.array([i.base for i in instruments]), symbols.codes)
            vendor.add("quote_asset", pa.array([i.quote for i in instruments]), symbols.codes)
        elif not self._columns.vendor and not self._facts.entries:
            return pa.nulls(count, self.kind.arrow.field("vendor_data").type)
        return vendor.build()


def _each_that_fails(attempt: Callable[[int, int], None], count: int) -> Iterator[tuple[int, str]]:
    """Try parts (start, count) of rows, in order and ever smaller; yield those that fail alone."""
    parts = [(0, count)] if count else []
    while parts:
        start, size = parts.pop()
        try:
            attempt(start, size)
        except Unfit as exc:
            if size == 1:
                yield start, str(exc)
            else:
                parts += reversed(_split(start, size))


def _split(start: int, count: int) -> list[tuple[int, int]]:
    if count <= _HALVE_ABOVE:
        return [(place, 1) for place in range(start, start + count)]
    half = count // 2
    return [(start, half), (start + half, count - half)]


def _time_fields(fields: Collection[str]) -> Sequence[str]:
    return ("timestamp",) if "timestamp" in fields else ("date", "time")


def _why_no_decimal(text: str, of: pa.DataType) -> str:
    if not text:
        return "is empty"
    if _NEGATIVE_TEXT.fullmatch(text) and len(text) > 1:
        return "is negative"
    match = _DECIMAL_TEXT.fullmatch(text)
    if match is None or text == ".":
        return "is not a plain number"
    if len((match[2] or "").rstrip("0")) > of.scale:
        return f"has more than {of.scale} decimals"
    if len(match[1].lstrip("0")) > of.precision - of.scale:
        return f"has more than {of.precision - of.scale} digits before the point"
    return "has too many digits"
