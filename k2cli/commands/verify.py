"""`k2 verify`: prove that the table has exactly the exchange's trades, and load missing ones."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from k2cli.commands.known import remember_series
from k2cli.commands.options import HomeOpt, TextOrJson, TextOrJsonOpt, settings
from k2cli.commands.terminal import output
from k2cli.commands.terminal.fitting import fit_rows
from k2cli.commands.terminal.signals import Interrupts, Terminated
from k2cli.commands.terminal.streams import note
from k2cli.config import Settings
from k2cli.errors import BadData, NotFound, UsageError
from k2cli.ingestion.symbols import Market
from k2cli.redaction import redact_url, remember_secrets
from k2cli.rejects import shown

if TYPE_CHECKING:
    from k2cli.pipelines.verify.job import Verification
    from k2cli.pipelines.verify.sources import Source
    from k2cli.ranges import Ranges

verify_app = typer.Typer(
    help="Compare the tables with what the exchange published.", no_args_is_help=True
)
_DAY: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_MAX_RANGES: Final = 5  # of ids, in a line for people
_MAX_EXAMPLES: Final = 5


@verify_app.callback()
def verify() -> None:
    """Compare the tables with what the exchange published."""


def parse_day(text: str) -> date:
    """Parse a day of the past, UTC: 2026-01-13, yesterday or today."""
    today = datetime.now(UTC).date()
    named = {"today": today, "yesterday": today - timedelta(days=1)}
    word = text.strip().lower()
    if word not in named and not _DAY.fullmatch(word):
        raise ValueError(f"{text!r} is not a day such as 2026-01-13, yesterday or today")
    day = named.get(word) or date.fromisoformat(word)
    if day > today:
        raise ValueError(f"{day} is in the future")
    return day


@verify_app.command()
def trades(
    *,
    symbol: Annotated[str, typer.Option("--symbol", "-s", help="Symbol: BTCUSDT or BTC/USDT.")],
    day: Annotated[
        date,
        typer.Option(
            "--day",
            help="Day, UTC: 2026-01-13, yesterday or today.",
            parser=parse_day,
            metavar="DAY",
        ),
    ],
    dump: Annotated[
        Path | None,
        typer.Option(
            "--dump",
            help="Compare with this dump of the exchange: .csv, .csv.gz, .csv.zst or .zip.",
        ),
    ] = None,
    rest: Annotated[
        bool, typer.Option("--rest", help="Compare with the exchange's REST API.")
    ] = False,
    market: Annotated[
        Market | None,
        typer.Option(
            "--market",
            help="Market of the symbol.",
            show_default="inferred from the dump, else spot",
        ),
    ] = None,
    rest_url: Annotated[
        list[str] | None,
        typer.Option(
            "--rest-url",
            help="REST URL for --rest; repeat for failover.",
            show_default="the exchange's API",
        ),
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Load the missing trades, in one commit.")
    ] = False,
    fmt: TextOrJsonOpt = TextOrJson.TEXT,
    home: HomeOpt = None,
) -> None:
    """Compare a day of trades with the exchange's dump or REST API, id by id.

    Prints counts, sums and differences, and PASS, or FAIL with exit code 6. A .CHECKSUM file
    beside the dump is verified. --repair loads missing trades, as a load that `k2 load history`
    lists; extra and differing trades are never changed. JSON lists all ids, as ranges.

    Example: k2 verify trades -s BTCUSDT --day 2026-01-13 --dump BTCUSDT-trades-2026-01-13.zip
    """
    if (dump is None) == (not rest):
        given = "use only one of --dump and --rest" if rest else "neither --dump nor --rest given"
        raise UsageError(given, hint="--dump FILE for the exchange's dump of the day, or --rest")
    if rest_url and not rest:
        raise UsageError("--rest-url requires --rest", hint="omit it with --dump")
    for each in rest_url or ():
        remember_secrets({"url": each})
    config = settings(home)

    def open_source() -> "Source":
        if dump is None:
            return _open_rest(config, symbol, day, market or Market.SPOT, rest_url or ())
        from k2cli.pipelines.verify.sources import DumpSource

        return DumpSource(dump, symbol=symbol, market=market, day=day, home=config.home)

    found = _verify(config, open_source, is_repairing=repair)
    remember_series(config, [(found.of.exchange, found.of.symbol)])
    is_json = fmt is TextOrJson.JSON
    output.data(json.dumps(_document(found), default=shown) if is_json else _text(found))
    for line in _notes(found):
        note(line)
    if not found.is_passed:
        raise _failure(found, is_repairing=repair)


def _verify(
    config: Settings, open_source: Callable[[], "Source"], *, is_repairing: bool
) -> "Verification":
    from k2cli.pipelines.verify.job import verify_day

    interrupts = Interrupts()
    try:
        with interrupts.raised():
            return verify_day(
                config,
                open_source,
                is_repairing=is_repairing,
                uninterrupted=interrupts.uninterrupted,
            )
    except Terminated as exc:
        raise typer.Exit(exc.exit_code) from exc


def _open_rest(
    config: Settings, symbol: str, day: date, market: Market, rest_urls: Sequence[str]
) -> "Source":
    from k2cli.ingestion.exchanges import EXCHANGES
    from k2cli.pipelines.verify.sources import RestSource
    from k2cli.query.comparison import SymbolDay

    venue = EXCHANGES["binance"].venues[market].at((), rest_urls)
    instrument = venue.parse_symbol(symbol, config.home)
    history = venue.open_history(config.home, api_key=config.binance.api_key)
    if history is None:
        raise NotFound(f"{venue.exchange} has no REST API", hint="use --dump FILE")
    return RestSource(
        history,
        instrument,
        of=SymbolDay(exchange=venue.exchange, symbol=instrument.symbol, day=day),
        name=redact_url(venue.rest_urls[0]),
    )


def _failure(found: "Verification", *, is_repairing: bool) -> BadData:
    compared = found.comparison
    counts = {
        "missing": _count(compared.missing),
        "extra": _count(compared.extra),
        "differing": _count(compared.differing),
        "stored more than once": _count(compared.repeated),
    }
    faults = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)
    hint = None
    if counts["missing"] and not is_repairing:
        hint = "--repair loads the missing trades"
    elif counts["stored more than once"]:
        hint = "k2 table dedupe trades"
    return BadData(
        f"trades of {found.of.symbol} on {found.of.day}: {faults or 'other totals'}", hint=hint
    )


def _notes(found: "Verification") -> Iterator[str]:
    """Yield what else was noticed."""
    if found.repaired:
        yield f"loaded {found.repaired:,} missing trades"
    if found.repeated:
        yield f"{found.source} repeats {found.repeated:,} ids; each counts once"
    if found.other_days:
        yield f"{found.source} has {found.other_days:,} trades of other days, which are ignored"
    if holes := _count(found.holes):
        yield f"{found.source} lacks {holes:,} ids itself: {_ranges_text(found.holes)}"
    if without := found.comparison.without_id:
        yield f"{without:,} rows without the exchange's trade ids are not compared"
    if not found.comparison.source.trades + found.comparison.stored.trades:
        yield f"{found.of.symbol} has no trades on {found.of.day}, here or at the exchange"
    if found.is_partial:
        yield f"{found.of.day} is not over: only trades published so far were compared"


def _text(found: "Verification") -> str:
    compared, of = found.comparison, found.of
    checked = ", checksum verified" if found.has_checksum else ""
    sides = [
        [
            name,
            f"{totals.trades:,}",
            *("" if each is None else str(each) for each in (totals.first_id, totals.last_id)),
            f"{totals.volume:f}",
            f"{totals.turnover:f}",
        ]
        for name, totals in (("source", compared.source), ("table", compared.stored))
    ]
    names = ["", "trades", "first id", "last id", "volume", "turnover"]
    totals, _ = fit_rows(names, sides, None, texts=[""])
    faults = (
        ("missing", compared.missing),
        ("extra", compared.extra),
        ("differing", compared.differing),
        ("repeated", compared.repeated),
    )
    counts, _ = fit_rows(
        ["", "trades", "ids"],
        [[name, f"{_count(ranges):,}", _ranges_text(ranges)] for name, ranges in faults],
        None,
        texts=["", "ids"],
    )
    lines = [
        f"{of.exchange} {of.symbol} {of.day}, compared with {found.source}{checked}",
        *totals,
        *counts,
        *_example_lines(found),
        "PASS" if found.is_passed else "FAIL",
    ]
    return "\n".join(lines)


def _example_lines(found: "Verification") -> Iterator[str]:
    for each in found.comparison.examples[:_MAX_EXAMPLES]:
        values = ", ".join(
            f"{name} {shown(value)} (table: {shown(each.stored[name])})"
            for name, value in each.source.items()
            if value != each.stored[name]
        )
        yield f"{each.id}: {values}"


def _document(found: "Verification") -> dict[str, Any]:
    compared = found.comparison
    return {
        "result": "PASS" if found.is_passed else "FAIL",
        **asdict(found.of),
        "source": {
            "name": found.source,
            "sha256": found.digest or None,
            "has_checksum": found.has_checksum,
            **asdict(compared.source),
            "repeated": found.repeated,
            "other_days": found.other_days,
            "holes": _ids(found.holes),
        },
        "table": {**asdict(compared.stored), "without_id": compared.without_id},
        "missing": _ids(compared.missing),
        "extra": _ids(compared.extra),
        "differing": {
            **_ids(compared.differing),
            "examples": [asdict(each) for each in compared.examples],
        },
        "repeated": _ids(compared.repeated),
        "repaired": found.repaired,
        "is_partial": found.is_partial,
    }


def _ids(ranges: "Ranges") -> dict[str, Any]:
    return {"count": _count(ranges), "ids": ranges.tolist()}


def _count(ranges: "Ranges") -> int:
    return int((ranges[:, 1] - ranges[:, 0] + 1).sum())


def _ranges_text(ranges: "Ranges") -> str:
    texts = [
        str(first) if first == last else f"{first}-{last}"
        for first, last in ranges[:_MAX_RANGES].tolist()
    ]
    more = len(ranges) - len(texts)
    return ", ".join(texts) + (f" and {more:,} more ranges" if more else "")
