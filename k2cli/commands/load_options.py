"""The options that the commands of `k2 load` share."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from k2cli.ingestion.symbols import Market
from k2cli.symbols import split_commas


class LoadTo(StrEnum):
    """Where the rows of files go."""

    TABLE = "table"
    KAFKA = "kafka"
    STDOUT = "stdout"


LayoutOpt = Annotated[
    str,
    typer.Option(
        "--layout",
        "-l",
        help="A name that `k2 load layouts` lists, or a TOML file.",
        show_default=False,
    ),
]
SymbolOpt = Annotated[
    str | None, typer.Option("--symbol", "-s", help="The symbol, where no column has it.")
]
ExchangeOpt = Annotated[
    str | None, typer.Option("--exchange", help="The exchange, where the layout has none.")
]
AssetClassOpt = Annotated[
    str | None, typer.Option("--asset-class", help="equities, crypto, futures or options.")
]
CurrencyOpt = Annotated[
    str | None,
    typer.Option(
        "--currency",
        help="The currency, where no column has it.",
        show_default="for crypto: the symbol's",
    ),
]
MarketOpt = Annotated[
    Market | None,
    typer.Option(
        "--market",
        help="Market of the exchange's own files.",
        show_default="from path, name, symbol and columns, else spot",
    ),
]
TimezoneOpt = Annotated[
    str | None, typer.Option("--timezone", help="Of local times.", show_default="the layout's")
]
ReferenceOpt = Annotated[
    Path | None,
    typer.Option(
        "--reference", help="company_info.csv: the symbol of the number a file is named after."
    ),
]
MapOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        help="Take fields from other columns: price=Px,quantity=Qty; "
        "map their values: side:bid=SELL.",
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
    typer.Option("--to", help="Into the table, onto a Kafka topic, or as ndjson onto stdout."),
]
ForceLoadOpt = Annotated[
    bool,
    typer.Option(
        "--force",
        help="Load a file again that was loaded before; rows that are stored stay single.",
    ),
]
AllowDuplicatesOpt = Annotated[
    bool,
    typer.Option(
        "--allow-duplicates",
        help="Store the rows of a file without ids once more, also if it was loaded before.",
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
    str, typer.Option("--max-rejects", help="Rejects that a file may have: N, or P% of its lines.")
]


def parse_mappings(words: list[str] | None) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """Return which columns fields come from, and what texts of fields mean."""
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
