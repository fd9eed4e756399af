"""The options that the commands of `k2 load` share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from k2cli.ingestion.symbols import Market
from k2cli.symbols import split_commas


class LoadTo(StrEnum):
    """The target of the rows of files."""

    TABLE = "table"
    KAFKA = "kafka"
    STDOUT = "stdout"


LayoutOpt = Annotated[
    str,
    typer.Option(
        "--layout",
        "-l",
        help="Layout: a name from `k2 load layouts`, or a TOML file.",
        show_default=False,
    ),
]
SymbolOpt = Annotated[
    str | None, typer.Option("--symbol", "-s", help="Symbol, if no column has it.")
]
ExchangeOpt = Annotated[
    str | None, typer.Option("--exchange", help="Exchange, if the layout has none.")
]
AssetClassOpt = Annotated[
    str | None,
    typer.Option("--asset-class", help="Asset class: equities, crypto, futures or options."),
]
CurrencyOpt = Annotated[
    str | None,
    typer.Option(
        "--currency",
        help="Currency, if no column has it.",
        show_default="crypto: from the symbol",
    ),
]
MarketOpt = Annotated[
    Market | None,
    typer.Option(
        "--market",
        help="Market of the exchange's dumps.",
        show_default="inferred from path, name, symbol and columns, else spot",
    ),
]
TimezoneOpt = Annotated[
    str | None,
    typer.Option("--timezone", help="Time zone of local times.", show_default="the layout's"),
]
ReferenceOpt = Annotated[
    Path | None,
    typer.Option(
        "--reference", help="company_info.csv, which maps the number in a file's name to a symbol."
    ),
]
MapOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        help="Map fields to columns: price=Px,quantity=Qty; map values: side:bid=SELL.",
        show_default=False,
    ),
]
AnyTimeOpt = Annotated[
    bool,
    typer.Option("--any-time", help="Accept times before 1990 and after the end of next year."),
]
FollowSymlinksOpt = Annotated[
    bool, typer.Option("--follow-symlinks", help="Follow symbolic links in folders.")
]
ToOpt = Annotated[
    LoadTo,
    typer.Option("--to", help="Target: the table, a Kafka topic, or stdout as ndjson."),
]
ForceLoadOpt = Annotated[
    bool,
    typer.Option(
        "--force",
        help="Load files again that were loaded before, without storing rows twice.",
    ),
]
AllowDuplicatesOpt = Annotated[
    bool,
    typer.Option(
        "--allow-duplicates",
        help="Store the rows of files without ids again, even if the file was loaded before.",
    ),
]
DryRunOpt = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Parse the files and show counts, sample rows and rejects; write nothing.",
    ),
]
MaxRejectsOpt = Annotated[
    str, typer.Option("--max-rejects", help="Maximum rejects per file: N, or P% of its lines.")
]


def parse_mappings(words: list[str] | None) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """Return the column of each field, and the values of each field's texts."""
    columns: dict[str, str] = {}
    values: dict[str, dict[str, str]] = {}
    for word in split_commas(words or []):
        is_value = ":" in word.partition("=")[0]
        field, equals, given = word.rpartition("=") if is_value else word.partition("=")
        name, colon, text = field.partition(":")
        if not (name and equals and given):
            raise typer.BadParameter(
                "write it like price=Px,quantity=Qty or side:bid=SELL", param_hint="--map"
            )
        if colon:
            values.setdefault(name, {})[text] = given
        else:
            columns[field] = given
    return columns, values
