"""The options that the commands of `k2 load` share, in groups."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from k2cli.commands.groups import OptionGroup
from k2cli.commands.options import AutoRegisterOpt, LayoutOpt, MaxRejectBytesOpt, TopicOpt
from k2cli.ingestion.symbols import Market
from k2cli.symbols import split_commas

if TYPE_CHECKING:
    from k2cli.ingestion.csv.layout import Layout
    from k2cli.pipelines.load.files import InputFiles, Read

PREVIEW_ROWS: Final = 5  # printed without a target


class LoadTo(StrEnum):
    """The target of the rows of files."""

    TABLE = "table"
    KAFKA = "kafka"
    STDOUT = "stdout"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadingOptions(OptionGroup):
    """How files are read."""

    layout: LayoutOpt
    symbol: Annotated[
        str | None, typer.Option("--symbol", "-s", help="Symbol, if no column has it.")
    ] = None
    exchange: Annotated[
        str | None, typer.Option("--exchange", help="Exchange, if the layout has none.")
    ] = None
    asset_class: Annotated[
        str | None,
        typer.Option("--asset-class", help="Asset class: equities, crypto, futures or options."),
    ] = None
    currency: Annotated[
        str | None,
        typer.Option(
            "--currency",
            help="Currency, if no column has it.",
            show_default="crypto: from the symbol",
        ),
    ] = None
    market: Annotated[
        Market | None,
        typer.Option(
            "--market",
            help="Market of the exchange's dumps.",
            show_default="inferred from path, name, symbol and columns, else spot",
        ),
    ] = None
    timezone: Annotated[
        str | None,
        typer.Option("--timezone", help="Time zone of local times.", show_default="the layout's"),
    ] = None
    reference: Annotated[
        Path | None,
        typer.Option(
            "--reference",
            help="company_info.csv, which maps the number in a file's name to a symbol.",
        ),
    ] = None
    mappings: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            help="Map fields to columns: price=Px,quantity=Qty; map values: side:bid=SELL.",
            show_default=False,
        ),
    ] = None
    any_time: Annotated[
        bool,
        typer.Option("--any-time", help="Accept times before 1990 and after the end of next year."),
    ] = False
    follow_symlinks: Annotated[
        bool, typer.Option("--follow-symlinks", help="Follow symbolic links in folders.")
    ] = False

    def files(
        self,
        paths: list[str],
        read: "Read",
        suffixes: tuple[str, ...],
        shape: "ShapeOptions",
        home: Path,
    ) -> "InputFiles":
        """Build the description of the files to load, and of how to read them."""
        from k2cli.ingestion.csv.layout import load_layout
        from k2cli.ingestion.csv.source import CsvOptions
        from k2cli.pipelines.load.files import InputFiles

        return InputFiles(
            words=paths,
            layout_name=self.layout,
            layout=shape.apply(load_layout(self.layout)).mapped(*parse_mappings(self.mappings)),
            options=CsvOptions(
                symbol=self.symbol,
                exchange=self.exchange,
                asset_class=self.asset_class,
                currency=self.currency,
                market=self.market,
                timezone=self.timezone,
                reference=self.reference,
                is_any_time=self.any_time,
                home=home,
            ),
            read=read,
            suffixes=suffixes,
            is_following=self.follow_symlinks,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeOptions(OptionGroup):
    """The form of CSV files, if it differs from the layout."""

    columns: Annotated[
        list[str] | None,
        typer.Option(
            "--columns",
            help="Column names, for files without a header.",
            show_default=False,
        ),
    ] = None
    delimiter: Annotated[
        str | None,
        typer.Option(
            "--delimiter",
            help="Column delimiter: one character, or tab.",
            show_default="from the layout",
        ),
    ] = None
    decimal: Annotated[
        str | None,
        typer.Option(
            "--decimal", help="Decimal mark: . or a comma.", show_default="from the layout"
        ),
    ] = None
    encoding: Annotated[
        str | None,
        typer.Option(
            "--encoding",
            help="Encoding, such as utf-16, gbk or latin-1.",
            show_default="from the layout, or UTF-8",
        ),
    ] = None
    skip_lines: Annotated[
        int | None,
        typer.Option(
            "--skip-lines",
            min=0,
            help="Lines to skip before the header or first row.",
            show_default="from the layout",
        ),
    ] = None

    def apply(self, layout: "Layout") -> "Layout":
        """Return the layout with this form."""
        return layout.formatted(
            columns=[name.strip() for word in self.columns or () for name in word.split(",")],
            delimiter=self.delimiter,
            decimal=self.decimal,
            encoding=self.encoding,
            skip_lines=self.skip_lines,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RowTargetOptions(OptionGroup):
    """The target of rows, and how many rejects are accepted."""

    to: Annotated[
        LoadTo,
        typer.Option("--to", help="Target: the table, a Kafka topic, or stdout as ndjson."),
    ] = LoadTo.TABLE
    topic: TopicOpt = None
    auto_register: AutoRegisterOpt = True
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Parse the files and show counts, sample rows and rejects; write nothing.",
        ),
    ] = False
    max_rejects: Annotated[
        str,
        typer.Option("--max-rejects", help="Maximum rejects per file: N, or P% of its lines."),
    ] = "0"
    max_reject_bytes: MaxRejectBytesOpt = None

    @property
    def destination(self) -> LoadTo | None:
        """The target of rows; None in a dry run."""
        return None if self.dry_run else self.to


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetOptions(RowTargetOptions):
    """The target of rows, and which files and rejects are accepted."""

    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Load files again that were loaded before, without storing rows twice.",
        ),
    ] = False
    allow_duplicates: Annotated[
        bool,
        typer.Option(
            "--allow-duplicates",
            help="Store the rows of files without ids again, even if the file was loaded before.",
        ),
    ] = False


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
