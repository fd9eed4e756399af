"""Layouts: the columns of a file, and how they map to fields.

A layout is a TOML file (see layouts/*.toml for the built-in ones):

    kind = "trades"            # or "quotes"
    header = "sniff"           # none, sniff or required
    columns = ["id", "px"]     # in file order; with a header, names find their columns
    optional = []              # columns at the end that a file may lack
    lower_case = []            # columns whose text is lowercased
    delimiter = ","            # one character, or "tab"
    decimal = "."              # or ",": the decimal mark of numbers and times
    encoding = "utf-8"         # of the text: utf-16, gbk, latin-1, ...
    skip_lines = 0             # lines before the header or the first row
    rest = false               # true: unused columns go to vendor_data
    file_stem = "company_id"   # entry of vendor_data for the number that the file is named after
    market = false             # true: a dump of a Binance market, which implies exchange, asset
                               # class and currency; a header must not name unknown columns
    dump = "trades"            # in the names of such dumps: trades, aggTrades, bookTicker
    signed_quantity = false    # true: the sign of the quantity is the side, negative is a sell
    id_series = "agg"          # ids form a separate series of this name, not that of streams
    may_be_empty = []          # prices and quantities of quotes whose cells may be empty: null, as
                               # are quantities that [fields] of quotes does not have
    [market_columns.coinm]     # columns of that market that differ from `columns`
    [aliases]                  # column = other spellings in headers

    [fields]                   # field of the record = its column, or a list of candidates, of
                               # which the first in the header counts;
                               # id: a number; without `market` any text, or empty
    [time]                     # how = "epoch", "iso", "auto" or "format"; formats; zone
    [values]                   # field = {text = value}: what texts mean; for side, `other` is
                               # the value for all other texts
    [vendor_data]              # entry = its column
    [constants]                # exchange, asset_class, currency

Column names are compared without case, spaces and punctuation.

The module is long because this format and the checks of its keys are kept together.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import pyarrow as pa

from k2cli.errors import ConfigError, NotFound, UsageError
from k2cli.files import reading
from k2cli.ingestion.symbols import Market
from k2cli.kinds import KindName
from k2cli.nearest import suggestion
from k2cli.paths import expand_home
from k2cli.records import KINDS, RecordKind, asset_classes, enum_values

ASSET_CLASSES: Final = asset_classes()
_DECIMALS: Final[Mapping[str, tuple[str, ...]]] = {
    name: tuple(column.name for column in kind.arrow if pa.types.is_decimal(column.type))
    for name, kind in KINDS.items()
}
_SIDE: Final = "side"
_LABELS: Final = ("symbol", "exchange", "asset_class", "currency")
_SHARED: Final = (*_LABELS, "id", "source_sequence")
_TIMES: Final = ("timestamp", "date", "time")
_MAX_SKIPPED: Final = 1000
_SUFFIX: Final = ".toml"
_EXAMPLE: Final = datetime(2024, 8, 8, tzinfo=UTC)


class TimeRule(msgspec.Struct, frozen=True, kw_only=True):
    """How the time of a row is read.

    `epoch`: seconds, milliseconds, microseconds or nanoseconds since 1970, by the magnitude of each
    value. `iso`: ISO 8601 text, in `zone` where it has no offset. `auto`: either, or digits like
    20240808235548056. `format`: the fields date and time (or timestamp, by `date_format` alone) in
    strptime formats, in `zone`; formats with fractions also read whole seconds.
    """

    how: Literal["epoch", "iso", "auto", "format"]
    date_format: str | tuple[str, ...] = "%Y-%m-%d"
    time_format: str = "%H:%M:%S.%f"
    zone: str = "UTC"

    @property
    def date_formats(self) -> tuple[str, ...]:
        """The formats of dates, each of which is tried."""
        formats = self.date_format
        return (formats,) if isinstance(formats, str) else formats


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """The columns of a CSV file, and how they map to fields."""

    kind: KindName
    header: Literal["none", "sniff", "required"]
    fields: Mapping[str, str | tuple[str, ...]]
    time: TimeRule
    columns: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    lower_case: tuple[str, ...] = ()
    delimiter: str = ","
    decimal: Literal[".", ","] = "."
    encoding: str = "utf-8"
    skip_lines: int = 0
    rest: bool = False
    file_stem: str | None = None
    market: bool = False
    dump: Literal["trades", "aggTrades", "bookTicker"] | None = None
    signed_quantity: bool = False
    id_series: str = ""
    may_be_empty: tuple[str, ...] = ()
    market_columns: Mapping[str, Mapping[str, str]] = {}
    aliases: Mapping[str, tuple[str, ...]] = {}
    values: Mapping[str, Mapping[str, str]] = {}
    side: Mapping[str, str] = {}  # values.side, in layouts of k2 0.1.0
    vendor_data: Mapping[str, str] = {}
    constants: Mapping[str, str] = {}

    @property
    def record(self) -> RecordKind:
        """The record kind of the rows."""
        return KINDS[self.kind]

    @property
    def decimals(self) -> tuple[str, ...]:
        """The price and quantity fields."""
        return _DECIMALS[self.kind]

    @property
    def needed(self) -> tuple[str, ...]:
        """The prices and quantities that need a column; quotes may lack sizes."""
        sizes = ("bid_quantity", "ask_quantity")
        lacking = {each for each in sizes if each not in self.fields or each in self.may_be_empty}
        return tuple(name for name in self.decimals if name not in lacking)

    def candidates(self, field: str) -> tuple[str, ...]:
        """The possible column names of a field; the first one present is used."""
        names = self.fields.get(field, ())
        return (names,) if isinstance(names, str) else tuple(names)

    def for_market(self, market: Market) -> "Layout":
        """Return the column names in the files of a market."""
        names = self.market_columns.get(market, {})
        return msgspec.structs.replace(
            self,
            columns=tuple(names.get(column, column) for column in self.columns),
            optional=tuple(names.get(column, column) for column in self.optional),
        )

    @property
    def is_plain(self) -> bool:
        """Whether files are UTF-8, comma-separated and without lines to skip."""
        form = (self.delimiter, self.decimal, self.encoding.lower(), self.skip_lines)
        return form == (",", ".", "utf-8", 0)

    @property
    def side_values(self) -> Mapping[str, str]:
        """The side of each text; `other` is the side of all other texts."""
        return {**self.side, **self.values.get("side", {})}

    @property
    def all_columns(self) -> tuple[str, ...]:
        """The columns of every market."""
        others = (name for names in self.market_columns.values() for name in names.values())
        return tuple(dict.fromkeys([*self.columns, *others]))

    def spellings(self, column: str) -> tuple[str, ...]:
        """The possible header names of a column."""
        return (column, *self.aliases.get(column, ()))

    def formatted(
        self,
        *,
        columns: Sequence[str] | None = None,
        delimiter: str | None = None,
        decimal: str | None = None,
        encoding: str | None = None,
        skip_lines: int | None = None,
    ) -> "Layout":
        """Override the file format with options; None keeps the layout's value.

        `columns` are the names of the columns of a file without header.

        Raises:
            UsageError: the delimiter, decimal mark or encoding is invalid.
        """
        said = {
            "delimiter": delimiter,
            "decimal": decimal,
            "encoding": encoding,
            "skip_lines": skip_lines,
        }
        changes: dict[str, Any] = {key: value for key, value in said.items() if value is not None}
        if columns:
            if len(set(columns)) < len(columns):
                raise UsageError("--columns names one twice")
            changes |= {"header": "none", "columns": tuple(columns), "optional": ()}
        layout = msgspec.structs.replace(self, **changes)
        _check_form(layout)
        return msgspec.structs.replace(layout, delimiter=_delimiter(layout.delimiter))

    def mapped(
        self, renames: Mapping[str, str], values: Mapping[str, Mapping[str, str]] | None = None
    ) -> "Layout":
        """Map fields to columns: {"price": "Px"}; map texts: {"side": {"bid": "SELL"}}.

        Raises:
            UsageError: unknown field or value, or unknown column in a layout without header.
        """
        known = _known_fields(self.kind)
        for field, column in renames.items():
            if field not in known:
                raise UsageError(
                    f"{field!r} is not a field of {self.kind}", hint=suggestion(field, known)
                )
            if self.header == "none" and column not in self.columns:
                raise UsageError(
                    f"the layout has no column {column!r}",
                    hint=f"choose one of {', '.join(self.columns)}",
                )
        merged = dict(self.values)
        for field, texts in (values or {}).items():
            _check_texts(field, texts, self.kind)
            merged[field] = {**merged.get(field, {}), **texts}
        return msgspec.structs.replace(self, fields={**self.fields, **renames}, values=merged)


def layout_names() -> list[str]:
    """Return the names of the built-in layouts."""
    names = (entry.name for entry in _folder().iterdir())
    return sorted(name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX))


def layout_text(name: str) -> str:
    """Return the TOML text of a built-in layout.

    Raises:
        NotFound: the layout does not exist.
    """
    if name not in layout_names():
        raise NotFound(
            f"unknown layout {name!r}",
            hint=f"use the path of a .toml file, or {', '.join(layout_names())}",
        )
    return str((_folder() / f"{name}{_SUFFIX}").read_text(encoding="utf-8"))


def load_layout(name_or_path: str | Path) -> Layout:
    """Load a built-in layout by its name, or one from a .toml file.

    Raises:
        NotFound: the layout or file does not exist.
        ConfigError: the file is not a valid layout; the message names key and file.
    """
    text = str(name_or_path)
    if not text.endswith(_SUFFIX) and "/" not in text:
        return parse_layout(layout_text(text), origin=f"layout {text}")
    path = expand_home(text)
    if not path.exists():
        raise NotFound(
            f"layout file {text} does not exist", hint=f"built in: {', '.join(layout_names())}"
        )
    try:
        with reading(text, what="layout file"):
            return parse_layout(path.read_text(encoding="utf-8"), origin=text)
    except UnicodeDecodeError as exc:
        raise ConfigError(f"layout file {text} cannot be read: {exc}") from exc


def parse_layout(text: str, *, origin: str) -> Layout:
    """Parse a layout from TOML; `origin` names it in messages.

    Raises:
        ConfigError: a key is unknown or missing, or a value is invalid.
    """
    try:
        document: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"{origin} is not TOML: {exc}") from exc
    _check_keys(document, Layout.__struct_fields__, "", origin)
    if isinstance(document.get("time"), dict):
        _check_keys(document["time"], TimeRule.__struct_fields__, "time.", origin)
    try:
        layout = msgspec.convert(document, Layout)
    except msgspec.ValidationError as exc:
        raise ConfigError(f"{origin}: {exc}") from exc
    _check(layout, origin)
    return layout.formatted()


def _check(layout: Layout, origin: str) -> None:
    _check_keys(layout.fields, _known_fields(layout.kind), "fields.", origin)
    _check_keys(layout.constants, ("exchange", "asset_class", "currency"), "constants.", origin)
    for field in (*layout.needed, *_time_fields(layout)):
        if field not in layout.fields:
            raise ConfigError(f"{origin} lacks fields.{field}")
    _check_values(layout, origin)
    if layout.dump and not layout.market:
        raise ConfigError(f"{origin}: dump needs market = true")
    if layout.signed_quantity and not _sides(layout.kind):
        raise ConfigError(f"{origin}: signed_quantity is for trades only")
    if layout.id_series and not (layout.id_series.isalnum() and layout.market):
        raise ConfigError(f"{origin}: id_series is a word, for layouts with market = true")
    for field in layout.may_be_empty:
        if field not in layout.decimals or not layout.record.arrow.field(field).nullable:
            raise ConfigError(f"{origin}: may_be_empty cannot have {field!r}")
    _check_names(layout, origin)


def _check_names(layout: Layout, origin: str) -> None:
    if len(set(layout.columns)) < len(layout.columns):
        raise ConfigError(f"{origin}: columns names one twice")
    if layout.columns[len(layout.columns) - len(layout.optional) :] != layout.optional:
        raise ConfigError(f"{origin}: optional must be the last of columns")
    _check_keys(layout.market_columns, list(Market), "market_columns.", origin)
    for market, names in layout.market_columns.items():
        _check_keys(names, layout.columns, f"market_columns.{market}.", origin)
    if layout.columns:
        _check_keys(layout.aliases, layout.all_columns, "aliases.", origin)
    if layout.header != "required":
        _check_columns(layout, origin)


def _check_form(layout: Layout) -> None:
    """Check the file format options.

    Raises:
        UsageError: the delimiter, decimal mark or encoding is invalid.
    """
    delimiter = _delimiter(layout.delimiter)
    is_single = len(delimiter) == 1 and delimiter.isascii()
    if not is_single or delimiter.isalnum() or delimiter in '"\r\n\0.':
        raise UsageError(
            f"{layout.delimiter!r} cannot be a delimiter",
            hint="use one character like ; | , or tab",
        )
    if layout.decimal not in (".", ",") or layout.decimal == delimiter:
        raise UsageError(
            f"{layout.decimal!r} cannot be the decimal mark",
            hint="use '.' or ',', and not the delimiter",
        )
    if not 0 <= layout.skip_lines <= _MAX_SKIPPED:
        raise UsageError(f"skip_lines must be from 0 to {_MAX_SKIPPED}, not {layout.skip_lines}")
    try:
        is_text = "a,\n".encode(layout.encoding).decode(layout.encoding) == "a,\n"
    except (LookupError, UnicodeError, ValueError):
        is_text = False
    if not is_text:
        raise UsageError(
            f"unknown encoding {layout.encoding!r}",
            hint="use a name like utf-8, utf-16, latin-1 or gbk",
        )


def _delimiter(text: str) -> str:
    return "\t" if text in ("tab", "\\t") else text


def _check_values(layout: Layout, origin: str) -> None:
    try:
        _check_form(layout)
    except UsageError as exc:
        raise ConfigError(f"{origin}: {exc}", hint=exc.hint) from exc
    if not layout.time.date_formats:
        raise ConfigError(f"{origin}: time.date_format has no format")
    for field, texts in {**layout.values, "side": layout.side_values}.items():
        try:
            if texts:
                _check_texts(field, texts, layout.kind)
        except UsageError as exc:
            raise ConfigError(f"{origin}: {exc}", hint=exc.hint) from exc
    if layout.constants.get("asset_class", "equities") not in ASSET_CLASSES:
        raise ConfigError(
            f"{origin}: constants.asset_class is not one of {', '.join(ASSET_CLASSES)}"
        )
    for pattern in (*layout.time.date_formats, layout.time.time_format):
        if not _is_pattern(pattern):
            raise ConfigError(
                f"{origin}: {pattern!r} is not a strptime format without an offset",
                hint='use how = "iso" for texts with an offset',
            )


def _check_texts(field: str, texts: Mapping[str, str], kind: str) -> None:
    """Check the values that texts of a field map to.

    Raises:
        UsageError: the field does not have these values.
    """
    known = (*_sides(kind), *_LABELS)
    if field not in known:
        raise UsageError(
            f"values of {field} cannot be mapped", hint=f"only those of {', '.join(known)}"
        )
    allowed = enum_values(KINDS[kind], field)
    for text, value in texts.items():
        if (allowed and value not in allowed) or not value:
            raise UsageError(
                f"{field} {text!r} cannot be mapped to {value!r}",
                hint=f"choose one of {', '.join(allowed)}" if allowed else None,
            )


def _check_columns(layout: Layout, origin: str) -> None:
    """Check that `columns` of every market has all columns needed without a header."""
    known = {
        *layout.columns,
        *(n for each in layout.market_columns.values() for n in each.values()),
    }
    used = {f"fields.{field}": layout.candidates(field) for field in layout.fields}
    used |= {f"vendor_data.{key}": (column,) for key, column in layout.vendor_data.items()}
    for key, columns in used.items():
        for column in columns:
            if column not in known:
                raise ConfigError(
                    f"{origin}: {key} is from {column!r}, which is not in columns",
                    hint=suggestion(column, layout.columns),
                )


def _is_pattern(pattern: str) -> bool:
    try:
        datetime.strptime(f"{_EXAMPLE.strftime(pattern)} +0000", f"{pattern} %z")
    except (ValueError, re.error):
        return False
    return True


def _time_fields(layout: Layout) -> Sequence[str]:
    is_split = layout.time.how == "format" and "timestamp" not in layout.fields
    return ("date", "time") if is_split else ("timestamp",)


def _known_fields(kind: str) -> tuple[str, ...]:
    return (*_DECIMALS[kind], *_sides(kind), *_TIMES, *_SHARED)


def _sides(kind: str) -> tuple[str, ...]:
    """Return the side field of a record kind, if it has one."""
    return (_SIDE,) if _SIDE in KINDS[kind].arrow.names else ()


def _check_keys(found: Iterable[str], known: Sequence[str], section: str, origin: str) -> None:
    for key in found:
        if key not in known:
            raise ConfigError(
                f"unknown key {section}{key} in {origin}", hint=suggestion(key, known)
            )


def _folder() -> Any:
    return resources.files("k2cli.ingestion.csv") / "layouts"
