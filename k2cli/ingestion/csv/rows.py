"""Convert columns of text to rows of a record kind, whole columns at a time.

A column that does not fit is halved until the bad rows are isolated; those are returned with the
reason, all others become rows.

The module is long because all steps from text to rows work on the same columns.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from k2cli.columns import (
    Ints,
    Unfit,
    UnfitField,
    VendorData,
    decimals_of,
    timestamps,
    to_batch,
    why_no_decimal,
)
from k2cli.errors import UsageError
from k2cli.ingestion.csv.headers import Columns, time_fields
from k2cli.ingestion.csv.ids import (
    IdRows,
    Labels,
    any_ids,
    check_ids,
    number_ids,
    other_ids,
    row_ids,
)
from k2cli.ingestion.csv.layout import ASSET_CLASSES, Layout
from k2cli.ingestion.csv.market import markets_of_symbol
from k2cli.ingestion.csv.numbers import plain_numbers
from k2cli.ingestion.csv.times import TimeReader, whole_numbers
from k2cli.ingestion.symbols import Instrument, Market, parse_symbol
from k2cli.rejects import MAX_SHOWN, Cause, Fault
from k2cli.symbols import normalize_symbol

_HALVE_ABOVE: Final = 32  # rows; smaller parts are tried row by row
_LONGEST_NAME: Final = 64  # characters of a symbol, exchange or currency
_FEW: Final = 5  # values shown in a notice
_MAX_KEPT: Final = 1000  # distinct values
_NO_CONDITIONS: Final = pa.array([], pa.string())

Cells = Sequence[pa.StringArray]
_Check = Callable[[Cells, int], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileContext:
    """Values that apply to every row of a file and come from none of its columns."""

    zone: str
    values: Mapping[str, str] = field(default_factory=dict)  # symbol, exchange, ...
    entries: Mapping[str, str] = field(default_factory=dict)  # of vendor_data
    identity: Callable[[], str] = str  # of the file, if its rows have no ids
    market: Market | None = None  # of a layout of the exchange's files
    home: Path | None = None  # the folder with the last refreshed symbol lists
    is_any_time: bool = False  # accept times before 1990 and in the far future
    decimal: str = "."


@dataclass(frozen=True, slots=True)
class Built:
    """The rows of a block, and the faults of the others, by row index."""

    rows: Sequence[pa.RecordBatch]
    faults: Mapping[int, Fault]


class RowBuilder:
    """Converts the columns of one file to rows."""

    def __init__(self, layout: Layout, columns: Columns, context: FileContext) -> None:
        self._layout = layout
        self._columns = columns
        self._context = context
        self.kind: Final = layout.record
        self._instruments: dict[str, Instrument] = {}
        self._time = TimeReader(layout.time, context.zone, is_any_time=context.is_any_time)
        self._unknown_sides: Counter[str] = Counter()

    def notices(self) -> Iterator[str]:
        """Yield notices for the user about the rows built so far."""
        if self._time.is_truncated:
            yield "times are finer than microseconds: truncated to microseconds"
        if self._unknown_sides:
            texts = ", ".join(f"{text!r}" for text, _ in self._unknown_sides.most_common(_FEW))
            yield (
                f"{self._unknown_sides.total():,} unknown sides stored as UNKNOWN: "
                f"{texts} (--map side:TEXT=BUY)"
            )

    def build(self, cells: Cells, numbers: Ints, received_us: int) -> Built:
        """Build rows; `numbers` are the row numbers in the file, for rows without an id."""
        if not len(numbers):
            return Built([], {})
        try:
            return Built([self.build_all(cells, numbers, received_us)], {})
        except Unfit:
            faults = self._faults(cells, len(numbers))
        kept = np.setdiff1d(np.arange(len(numbers)), list(faults))
        fit = [column.take(pa.array(kept)) for column in cells]
        rows: list[pa.RecordBatch] = []

        def add(start: int, count: int) -> None:
            part = [column.slice(start, count) for column in fit]
            rows.append(self.build_all(part, numbers[kept[start : start + count]], received_us))

        # Rows that fit one by one may not fit together: times with and without an offset.
        faults |= {int(kept[index]): why for index, why in _each_that_fails(add, len(kept))}
        return Built(rows, faults)

    def _faults(self, cells: Cells, count: int) -> dict[int, Fault]:
        """Find the rows that do not fit, column by column."""
        faults: dict[int, Fault] = {}
        for names, check in self._checks():
            for index, why in self._faults_of(check, names, cells, count):
                faults.setdefault(index, why)
        return faults

    def _faults_of(
        self, check: _Check, names: Sequence[str], cells: Cells, count: int
    ) -> Iterator[tuple[int, Fault]]:
        indexes = [self._columns.fields[name] for name in names]
        part = list(cells)

        def attempt(start: int, size: int) -> None:
            for index in indexes:
                part[index] = cells[index].slice(start, size)
            check(part, size)

        return _each_that_fails(attempt, count)

    def _checks(self) -> Iterator[tuple[Sequence[str], _Check]]:
        """Yield the checks that can fail, with the fields that they read."""
        there = self._columns.fields
        yield time_fields(there), lambda cells, _: self._times(cells)
        for name in self._layout.decimals:
            if name in there:
                yield (name,), self._decimals_check(name)
        if self._layout.may_be_empty:
            yield [name for name in self._layout.decimals if name in there], self._sides_check
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
        if "symbol" in there:  # the currency may come from it
            yield ("symbol",), self._currencies_check

    def build_all(self, cells: Cells, numbers: Ints, received_us: int) -> pa.RecordBatch:
        """Build rows from cells that all fit.

        Raises:
            Unfit: a cell does not fit.
        """
        cells = [
            pc.ascii_lower(column) if index in self._columns.lower else column
            for index, column in enumerate(cells)
        ]
        count, layout = len(numbers), self._layout
        symbols = self._symbols(cells, count)
        moments = self._times(cells)
        ids = IdRows(
            kind=self.kind.name,
            identity=self._context.identity,
            exchanges=self._labels("exchange", cells, count),
            symbols=symbols,
            moments=moments,
            numbers=numbers,
            id_series=layout.id_series,
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
        if layout.may_be_empty:
            self._sides_check(cells, count)
        for name in layout.decimals:
            columns[name] = self._decimals(name, cells, count)
        if "side" in self.kind.arrow.names:
            columns["side"] = self._sides(cells, count)
            self._note_sides(cells, columns["side"])
            columns["trade_conditions"] = pa.ListArray.from_arrays(
                pa.array(np.zeros(count + 1, dtype=np.int32)), _NO_CONDITIONS
            )
        return to_batch(self.kind, columns)

    def _unfit(self, name: str, cells: Cells, brief: object, cause: Cause) -> UnfitField:
        """Describe which column does not fit, with its value if there is only one row."""
        index = self._columns.fields[name]
        column = self._columns.names[index]
        is_alone = len(cells[index]) == 1
        value = cells[index][0].as_py()[:MAX_SHOWN] if is_alone else None
        what = column if value is None else f"{column} {value!r}"
        return UnfitField(
            Fault(
                reason=f"{what} {brief}",
                cause=cause,
                field=name,
                value=value,
                column=column,
                brief=str(brief),
            )
        )

    def _decimals(self, name: str, cells: Cells, count: int) -> pa.Array:
        index, of = self._columns.fields.get(name), self.kind.type_of(name)
        if index is None:  # quotes without sizes
            return pa.nulls(count, of)
        texts = cells[index]
        if name in self._layout.may_be_empty:
            is_empty = _is_empty(texts)
            filled = self._all_decimals(name, pc.if_else(is_empty, "0", texts), cells)
            return pc.if_else(is_empty, pa.scalar(None, of), filled)
        return self._all_decimals(name, texts, cells)

    def _all_decimals(self, name: str, texts: pa.StringArray, cells: Cells) -> pa.Array:
        of = self.kind.type_of(name)
        if self._context.decimal != ".":
            if pc.any(pc.match_substring(texts, ".")).as_py():
                reason = "has a decimal point, but the decimal mark is a comma"
                raise self._unfit(name, cells, reason, Cause.NOT_A_NUMBER)
            texts = pc.replace_substring(texts, self._context.decimal, ".")
        if name == "quantity" and self._layout.signed_quantity:
            texts = pc.replace_substring_regex(texts, "^-", "")
        try:
            return decimals_of(texts, of)
        except (Unfit, pa.ArrowException):
            texts = plain_numbers(texts)
        try:
            return decimals_of(texts, of)
        except (Unfit, pa.ArrowException) as exc:
            if len(texts) > 1:
                raise self._unfit(name, cells, "does not fit", Cause.NOT_A_NUMBER) from exc
            why = why_no_decimal(texts[0].as_py(), of)
            raise self._unfit(name, cells, why, why.cause) from exc

    def _decimals_check(self, name: str) -> _Check:
        return lambda cells, count: self._decimals(name, cells, count)

    def _times(self, cells: Cells) -> Ints:
        fields = self._columns.fields
        names = time_fields(fields)
        parts = [cells[fields[name]] for name in names]
        if self._context.decimal != ".":
            parts = [pc.replace_substring(part, self._context.decimal, ".") for part in parts]
        try:
            return self._time.read(parts)
        except Unfit as exc:
            if len(parts[0]) > 1:
                raise self._unfit(names[0], cells, exc, exc.cause) from exc
            both = " ".join(part[0].as_py()[:MAX_SHOWN] for part in parts)
            cause = exc.cause if both.strip() else Cause.MISSING
            if len(parts) == 1:
                raise self._unfit(names[0], cells, exc, cause) from exc
            fault = Fault(
                reason=f"date and time {both!r}: {exc}",
                cause=cause,
                field="timestamp",
                value=both,
                column=",".join(self._columns.names[fields[name]] for name in names),
                brief=str(exc),
            )
            raise UnfitField(fault) from exc

    def _numbers(self, name: str, cells: Cells, texts: pa.StringArray) -> Ints:
        try:
            return whole_numbers(texts)
        except Unfit as exc:
            raise self._unfit(name, cells, exc, exc.cause) from exc

    def _ids(self, cells: Cells, rows: IdRows) -> dict[str, pa.Array]:
        index = self._columns.fields.get("id")
        if index is None:
            ids = row_ids(rows)
        elif self._layout.id_series:
            ids = other_ids(rows, cells[index])
        elif self._layout.market:
            ids = number_ids(rows, cells[index])
        else:
            ids = any_ids(rows, cells[index])
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
            raise self._unfit("id", cells, exc, exc.cause) from exc

    def _sequence(self, cells: Cells, otherwise: pa.Array) -> pa.Array:
        index = self._columns.fields.get("source_sequence")
        if index is None:
            return otherwise
        texts = cells[index]
        is_there = pc.greater(pc.binary_length(texts), 0)
        if pc.all(is_there).as_py():
            return pa.array(self._numbers("source_sequence", cells, texts))
        filled = pc.if_else(is_there, texts, "0")
        numbers = self._numbers("source_sequence", cells, filled)
        return pc.if_else(is_there, pa.array(numbers), pa.scalar(None, pa.int64()))

    def _labels(self, name: str, cells: Cells, count: int) -> Labels:
        """Return a column of names, or the one name of the whole file."""
        if name in self._context.values:
            return Labels([self._context.values[name]], np.zeros(count, dtype=np.int64))
        encoded = cells[self._columns.fields[name]].dictionary_encode()
        meanings = self._layout.values.get(name, {})
        names = [meanings.get(text, text) for text in encoded.dictionary.to_pylist()]
        for text in names:
            if not text:
                raise self._unfit(name, cells, "is empty", Cause.MISSING)
            if text != text.strip() or not text.isprintable():
                raise self._unfit(name, cells, "is not a name", Cause.BAD_TEXT)
            if len(text) > _LONGEST_NAME:
                reason = f"is longer than {_LONGEST_NAME} characters"
                raise self._unfit(name, cells, reason, Cause.TOO_LONG)
        return Labels(names, encoded.indices.to_numpy().astype(np.int64))

    def _symbols(self, cells: Cells, count: int) -> Labels:
        labels = self._labels("symbol", cells, count)
        if not self._layout.market:
            return Labels([normalize_symbol(name) for name in labels.names], labels.codes)
        try:
            names = [self._instrument(name).symbol for name in labels.names]
        except UsageError as exc:
            reason = f"is unknown: {exc}"
            raise self._unfit("symbol", cells, reason, Cause.UNKNOWN_SYMBOL) from exc
        return Labels(names, labels.codes)

    def _instrument(self, text: str) -> Instrument:
        instrument = self._instruments.get(text)
        if instrument is None:
            market = self._context.market
            assert market is not None  # only these layouts split symbols
            if market not in markets_of_symbol(text):
                raise UsageError(f"{text[:MAX_SHOWN]} is not on the market {market}")
            instrument = parse_symbol(text, market, self._context.home)
            self._instruments |= {text: instrument, instrument.symbol: instrument}
        return instrument

    def _asset_classes(self, cells: Cells, count: int) -> Labels:
        labels = self._labels("asset_class", cells, count)
        if not set(labels.names) <= set(ASSET_CLASSES):
            reason = f"is not one of {', '.join(ASSET_CLASSES)}"
            raise self._unfit("asset_class", cells, reason, Cause.UNKNOWN_ENUM)
        return labels

    def _currencies_check(self, cells: Cells, count: int) -> None:
        if "currency" not in self._columns.fields:
            self._currencies(cells, self._symbols(cells, count), count)

    def _currencies(self, cells: Cells, symbols: Labels, count: int) -> Labels:
        if "currency" in self._context.values or "currency" in self._columns.fields:
            return self._labels("currency", cells, count)
        if self._layout.market:
            return Labels([self._instrument(name).quote for name in symbols.names], symbols.codes)
        try:
            quotes = [parse_symbol(name, Market.SPOT).quote for name in symbols.names]
        except UsageError as exc:
            reason = f"has no known currency: {exc}; use --currency"
            raise self._unfit("symbol", cells, reason, Cause.UNKNOWN_CURRENCY) from exc
        return Labels(quotes, symbols.codes)

    def _sides(self, cells: Cells, count: int) -> pa.StringArray:
        values = {text.lower(): side for text, side in self._layout.side_values.items()}
        other = values.pop("other", None)
        index = self._columns.fields.get("side")
        if index is None:
            return self._sides_of_signs(cells, count)
        texts = pc.ascii_lower(cells[index])
        known = pa.array(list(values), pa.string())
        codes = pc.index_in(texts, value_set=known)
        if codes.null_count:
            texts = pc.utf8_lower(pc.utf8_trim_whitespace(texts))
            codes = pc.index_in(texts, value_set=known)
        sides = pa.array([*values.values(), other], pa.string())
        if codes.null_count:
            if other is None:
                expected = ", ".join(text or "nothing" for text in values)
                reason = f"is not one of {expected}; map it with --map side:TEXT=BUY"
                raise self._unfit("side", cells, reason, Cause.UNKNOWN_ENUM)
            codes = pc.fill_null(codes, len(values))
        return sides.take(codes)

    def _sides_of_signs(self, cells: Cells, count: int) -> pa.StringArray:
        """Take the side from the sign of the quantity, if the layout uses it."""
        if not self._layout.signed_quantity:
            return pa.array(["UNKNOWN"]).take(pa.array(np.zeros(count, dtype=np.int32)))
        texts = pc.utf8_ltrim_whitespace(cells[self._columns.fields["quantity"]])
        return pc.if_else(pc.starts_with(texts, "-"), "SELL", "BUY")

    def _note_sides(self, cells: Cells, sides: pa.StringArray) -> None:
        """Count unknown texts that the layout stores as a side."""
        other = self._layout.side_values.get("other")
        index = self._columns.fields.get("side")
        if other is None or index is None:
            return
        known = {text.lower() for text in self._layout.side_values} - {"other"}
        is_other = pc.equal(sides, other)
        for each in pc.value_counts(cells[index].filter(is_other)):
            text, count = each["values"].as_py(), each["counts"].as_py()
            is_room = len(self._unknown_sides) < _MAX_KEPT or text in self._unknown_sides
            if text.strip().lower() not in known:
                self._unknown_sides[text if is_room else ""] += count

    def _sides_check(self, cells: Cells, count: int) -> None:
        """Reject quotes with neither a bid nor an ask."""
        fields = self._columns.fields
        indexes = [fields[name] for name in ("bid_price", "ask_price") if name in fields]
        is_empty = np.ones(count, dtype=np.bool_)
        for index in indexes:
            is_empty &= _is_empty(cells[index]).to_numpy(zero_copy_only=False)
        if is_empty.any():
            reason = "is empty, and so is the ask: not a quote"
            raise self._unfit("bid_price", cells, reason, Cause.MISSING)

    def _vendor_data(self, cells: Cells, symbols: Labels, count: int) -> pa.Array:
        vendor = VendorData(count)
        for key, text in self._context.entries.items():
            vendor.add(key, pa.array([text]), np.zeros(count, dtype=np.int64))
        for key, index in self._columns.vendor:
            texts, rows = cells[index], np.arange(count)
            is_empty = pc.equal(pc.binary_length(texts), 0)
            if pc.any(is_empty).as_py():
                rows = np.where(is_empty.to_numpy(zero_copy_only=False), -1, rows)
            vendor.add(key, texts, rows)
        if self._layout.market:
            instruments = [self._instrument(name) for name in symbols.names]
            vendor.add("base_asset", pa.array([i.base for i in instruments]), symbols.codes)
            vendor.add("quote_asset", pa.array([i.quote for i in instruments]), symbols.codes)
        elif not self._columns.vendor and not self._context.entries:
            return pa.nulls(count, self.kind.arrow.field("vendor_data").type)
        return vendor.build()


def _is_empty(texts: pa.StringArray) -> pa.BooleanArray:
    return pc.equal(pc.binary_length(pc.utf8_trim_whitespace(texts)), 0)


def _each_that_fails(
    attempt: Callable[[int, int], None], count: int
) -> Iterator[tuple[int, Fault]]:
    """Bisect parts (start, count) of rows, in order; yield the single rows that fail."""
    parts = [(0, count)] if count else []
    while parts:
        start, size = parts.pop()
        try:
            attempt(start, size)
        except Unfit as exc:
            if size == 1:
                yield start, _fault_of(exc)
            else:
                parts += reversed(_split(start, size))


def _fault_of(exc: Unfit) -> Fault:
    if isinstance(exc, UnfitField):
        return exc.fault
    return Fault(reason=str(exc), cause=Cause.BAD_ROW)


def _split(start: int, count: int) -> list[tuple[int, int]]:
    if count <= _HALVE_ABOVE:
        return [(index, 1) for index in range(start, start + count)]
    half = count // 2
    return [(start, half), (start + half, count - half)]
