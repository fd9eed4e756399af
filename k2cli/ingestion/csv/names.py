"""Values from a file's name and the options: symbol, exchange, currency."""

import csv
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from k2cli.errors import BadData, UsageError
from k2cli.files import reading
from k2cli.ingestion.csv.layout import ASSET_CLASSES, Layout
from k2cli.ingestion.csv.market import Named, parse_name, plain_name
from k2cli.ingestion.symbols import Market, parse_symbol

_OPTIONS: Final = {
    "symbol": "use --symbol, or --reference company_info.csv with a line for the file",
    "exchange": "use --exchange",
    "asset_class": f"use --asset-class: {', '.join(ASSET_CLASSES)}",
    "currency": "use --currency",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CsvOptions:
    """The user's options for a file; they override its columns and layout."""

    symbol: str | None = None
    exchange: str | None = None
    asset_class: str | None = None
    currency: str | None = None
    market: Market | None = None  # of a Binance layout; otherwise inferred from the file
    timezone: str | None = None
    is_any_time: bool = False  # accept times before 1990 and after next year
    reference: Path | None = None  # company_info.csv: the file's stem -> symbol
    home: Path | None = None  # the folder with the last refreshed symbol lists


def file_values(
    layout: Layout,
    options: CsvOptions,
    stem: str,
    columns: Collection[str],
    market: Market | None = None,
) -> dict[str, str]:
    """Return the values of a whole file: the option, else (in `columns`) the row, else the layout.

    `market` is the file's market, for a layout of the exchange's files.

    Raises:
        UsageError: a value is missing; the hint names the option.
        NotFound, ConfigError, BadData: the reference is unreadable or lacks the line.
    """
    values = {
        name: value.strip() for name in _OPTIONS if (value := getattr(options, name)) is not None
    }
    if empty := [name for name, value in values.items() if not value]:
        raise UsageError(f"--{empty[0].replace('_', '-')} is empty")
    named = parse_name(stem)
    if "symbol" not in values and "symbol" not in columns:
        values["symbol"] = _symbol(options, stem, named)
    defaults = dict(layout.constants)
    if market is not None:
        defaults |= {"exchange": market.exchange, "asset_class": market.asset_class}
        if "symbol" in values:
            # Unknown symbols fail here, not row by row.
            parse_symbol(values["symbol"], market, options.home)
    values |= {name: value for name, value in defaults.items() if name not in {*values, *columns}}
    is_derived = layout.market or values.get("asset_class") == "crypto"
    if is_derived and "currency" not in {*values, *columns} and "symbol" in values and not market:
        values["currency"] = _quote_of(values["symbol"])
    for name, hint in _OPTIONS.items():
        # The currency of a crypto trade comes from its symbol, in the file or the row.
        if name not in {*values, *columns} and not (is_derived and name == "currency"):
            raise UsageError(f"no {name.replace('_', ' ')} given", hint=hint)
    if values.get("asset_class", "equities") not in ASSET_CLASSES:
        raise UsageError(
            f"{values['asset_class']!r} is not an asset class", hint=_OPTIONS["asset_class"]
        )
    return values


def _quote_of(symbol: str) -> str:
    try:
        return parse_symbol(symbol, Market.SPOT).quote
    except UsageError as exc:
        raise UsageError(f"no currency given: {exc}", hint=_OPTIONS["currency"]) from exc


def _symbol(options: CsvOptions, stem: str, named: Named | None) -> str:
    if named:
        return named.symbol
    if options.reference is None or not stem:
        raise UsageError("no symbol given", hint=_OPTIONS["symbol"])
    symbols = _read_reference(options.reference)
    found = symbols.get(_company(stem), set())
    if len(found) == 1:
        return next(iter(found))
    many = f"several symbols ({', '.join(sorted(found))})" if found else "no symbol"
    raise UsageError(f"{options.reference} has {many} for {stem}", hint=_OPTIONS["symbol"])


def _company(text: str) -> str:
    return text.strip().lstrip("0") or "0"


def _read_reference(path: Path) -> dict[str, set[str]]:
    """Read company ids and their symbols; a renamed company has several."""
    try:
        with (
            reading(path, what="reference"),
            path.open(encoding="utf-8-sig", newline="") as file,
        ):
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as exc:
        raise BadData(f"reference {path} is not CSV: {exc}") from exc
    symbols: dict[str, set[str]] = {}
    for row in rows:
        line = {plain_name(key): value for key, value in row.items() if isinstance(key, str)}
        if "companyid" not in line or "symbol" not in line:
            raise BadData(f"reference {path} lacks the columns company_id and symbol")
        if line["companyid"] and line["symbol"]:
            symbols.setdefault(_company(line["companyid"]), set()).add(line["symbol"].strip())
    return symbols
