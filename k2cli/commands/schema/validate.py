"""`k2 schema validate`: validate schemas, and data files against them."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from k2cli.commands.options import (
    HomeOpt,
    RegistryOpt,
    TextOrJson,
    TextOrJsonOpt,
    TimeoutOpt,
)
from k2cli.commands.schema.names import Finder, read_schema
from k2cli.commands.terminal import output
from k2cli.commands.terminal.plain import printable
from k2cli.errors import BadData, K2Error

if TYPE_CHECKING:
    from k2cli.validation.files import Validation
    from k2cli.validation.report import Problem, Report


def validate(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            help="Schemas (.avsc) and data: .avro, .ndjson, .jsonl, .parquet, .csv, .csv.gz, "
            ".csv.zst, .zip; - is stdin: a schema, or ndjson with --schema, or CSV with --layout.",
            show_default="the built-in schemas",
        ),
    ] = None,
    schema: Annotated[
        str | None,
        typer.Option(
            "--schema",
            help="Schema of the rows: a name such as trade_v2, FILE.avsc, or SUBJECT@VERSION.",
            show_default="by the record name of Avro files, or the layout of CSV",
        ),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(
            "--layout", "-l", help="CSV layout: a name from `k2 load layouts`, or a TOML file."
        ),
    ] = None,
    symbol: Annotated[
        str | None,
        typer.Option("--symbol", "-s", help="Symbol, if no column or file name has it."),
    ] = None,
    exchange: Annotated[
        str | None, typer.Option("--exchange", help="Exchange, if the layout has none.")
    ] = None,
    asset_class: Annotated[
        str | None,
        typer.Option("--asset-class", help="Asset class: equities, crypto, futures or options."),
    ] = None,
    currency: Annotated[
        str | None, typer.Option("--currency", help="Currency, if no column has it.")
    ] = None,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Treat warnings, such as fields without doc, as errors."),
    ] = False,
    max_errors: Annotated[
        int,
        typer.Option(
            "--max-errors", min=0, help="Stop after this many errors per file (0: no limit)."
        ),
    ] = 20,
    fmt: TextOrJsonOpt = TextOrJson.TEXT,
    timeout: TimeoutOpt = None,
    registry: RegistryOpt = None,
    home: HomeOpt = None,
) -> None:
    """Validate schemas, and files of data against a schema, row by row.

    All files are checked. Exit code 0 if all are valid, 6 if one is not, 4 if one is missing.

    Example: k2 schema validate trades.parquet --schema trade_v2 --format json
    """
    from k2cli.ingestion.csv.layout import load_layout
    from k2cli.ingestion.csv.source import CsvOptions
    from k2cli.validation.files import Validation

    expected = None
    if schema is not None:
        expected = Finder(home=home, registry=registry, timeout_s=timeout).find(schema)
        expected.record()  # because rows are records
    validation = Validation(
        expected=expected,
        layout=load_layout(layout) if layout is not None else None,
        options=CsvOptions(
            symbol=symbol, exchange=exchange, asset_class=asset_class, currency=currency
        ),
        max_errors=max_errors,
    )
    reports, errors = _check_files(files, validation, is_strict=strict)
    if fmt is TextOrJson.JSON:
        output.data(json.dumps({"files": [each.document() for each in reports]}))
    else:
        lines = (line for each in reports for line in _lines(each))
        output.data("\n".join(map(printable, lines)))
    if errors:
        worst = max(errors, key=lambda error: error.exit_code)
        count = f"{len(errors)} of {len(reports)} schemas and files are not valid"
        raise type(worst)(str(worst) if len(reports) == 1 else count, hint=worst.hint)


def _check_files(
    files: list[str] | None, validation: "Validation", *, is_strict: bool
) -> "tuple[list[Report], list[K2Error]]":
    """Check files, or the built-in schemas; return reports, and an error per invalid one."""
    from k2cli.avro.builtin import BUILTIN_SCHEMAS, builtin_schema
    from k2cli.validation.report import FileKind, failed, validate_schema

    reports: list[Report] = []
    errors: list[K2Error] = []
    for file in files or BUILTIN_SCHEMAS:
        kind = None
        try:
            kind = validation.kind_of(file) if files else FileKind.AVSC
            if not files:
                report = validate_schema(builtin_schema(file), file, is_strict=is_strict)
            elif kind is FileKind.AVSC:
                found = read_schema(file)
                report = validate_schema(found.avro, found.name, is_strict=is_strict)
            else:
                report = validation.validate(file)
        except K2Error as exc:
            report = failed(file, kind, exc)
            errors.append(exc)
        else:
            if not report.valid:
                errors.append(BadData(f"{report.file} is not valid"))
        reports.append(report)
    return reports, errors


def _lines(report: "Report") -> list[str]:
    """Format a report: one line for the file, then one per error and warning."""
    of = f" rows of {report.schema}" if report.schema else ""
    rows = "" if report.rows is None else f" ({report.rows:,}{of})"
    stopped = "; stopped, there are more" if report.stopped else ""
    count = f"{len(report.errors)} error{'s' if len(report.errors) > 1 else ''}"
    lines = [f"{report.file}: {'valid' if report.valid else count}{rows}{stopped}"]
    lines += [f"  {_line(each)}" for each in report.errors]
    return lines + [f"  warning: {_line(each)}" for each in report.warnings]


def _line(problem: "Problem") -> str:
    where = [f"row {problem.row:,}" if problem.row is not None else "", problem.field or ""]
    location = ", ".join(part for part in where if part)
    value = f" ({problem.value})" if problem.value is not None else ""
    return f"{location}: {problem.reason}{value}" if location else f"{problem.reason}{value}"
