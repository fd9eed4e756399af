"""`k2 query gaps`: the missing ids of a real table, and what is known about them."""

import json
import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import k2cli
from k2cli.config import Settings
from k2cli.query.formats import Format
from k2cli.records import TRADES
from k2cli.storage.gaps import GapWatch
from k2cli.storage.lake import Lake
from k2cli.storage.opengaps import GapNotes, OpenGap
from k2cli.storage.position import Series, Stored
from support.builders import START, table_of, trade_row
from support.foreign import append_as_another_engine
from support.running import K2, k2_at

BTC = Series("BINANCE", "BTCUSDT")
FOUND = datetime(2026, 9, 21, 14, 13, 20, tzinfo=UTC)
FOUND_S = int(FOUND.timestamp())
TRIED = FOUND + timedelta(seconds=30)


def times(number: int) -> datetime:
    """When a trade happened."""
    return START + timedelta(seconds=number)


def append(
    lake: Lake,
    numbers: Iterable[int],
    *,
    symbol: str = "BTCUSDT",
    reason: str | None = None,
    updates: Mapping[Series, list[OpenGap]] | None = None,
) -> None:
    """Append trades; with a reason, as a stream does that notes its gaps."""
    rows = [
        trade_row(symbol=symbol, source_sequence=n, trade_id=f"BINANCE-{n}", timestamp=times(n))
        for n in numbers
    ]
    watch, notes = None, None
    if reason is not None:
        notes = GapNotes(reason=reason, now_s=FOUND_S, updates=updates or {}, filled={})
        watch = GapWatch("BINANCE")
    lake.open(TRADES).append(table_of(TRADES, rows), watch=watch, notes=notes)


@pytest.fixture
def k2(home: Path) -> K2:
    return k2_at(home)


def listed(k2: K2, *args: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(k2("query", "gaps", "--format", "json", *args).stdout)
    return rows


def test_holes_are_listed_with_the_times_around_them(lake: Lake, k2: K2) -> None:
    append(lake, [10, 11, 15, 16, 30])
    append(lake, [7, 9], symbol="ETHUSDT")
    assert listed(k2) == [
        {
            "exchange": "BINANCE",
            "symbol": symbol,
            "first_id": first,
            "last_id": last,
            "missing": missing,
            "time_before": f"{times(first - 1):%Y-%m-%dT%H:%M:%S.%f}Z",
            "time_after": f"{times(last + 1):%Y-%m-%dT%H:%M:%S.%f}Z",
            "reason": None,
            "found": None,
            "last_attempt": None,
            "attempts": None,
        }
        for symbol, first, last, missing in (
            ("BTCUSDT", 12, 14, 3),
            ("BTCUSDT", 17, 29, 13),
            ("ETHUSDT", 8, 8, 1),
        )
    ]


def test_what_a_stream_knows_is_shown(lake: Lake, k2: K2) -> None:
    append(lake, [10, 20], reason="not fetched yet")
    tried = OpenGap(
        first=13,
        last=15,
        reason="the exchange does not list them",
        found_s=FOUND_S,
        tried_s=FOUND_S + 30,
        attempts=2,
    )
    append(lake, [21], reason="not fetched yet", updates={BTC: [tried]})
    rows = listed(k2)
    assert [(each["first_id"], each["last_id"], each["reason"]) for each in rows] == [
        (11, 12, "not fetched yet"),
        (13, 15, "the exchange does not list them"),
        (16, 19, "not fetched yet"),
    ]
    assert [each["last_attempt"] for each in rows] == [None, f"{TRIED:%Y-%m-%dT%H:%M:%S.%f}Z", None]
    assert [each["attempts"] for each in rows] == [0, 2, 0]
    assert {each["found"] for each in rows} == {f"{FOUND:%Y-%m-%dT%H:%M:%S.%f}Z"}
    assert {(each["time_before"], each["time_after"]) for each in rows} == {
        (f"{times(10):%Y-%m-%dT%H:%M:%S.%f}Z", f"{times(20):%Y-%m-%dT%H:%M:%S.%f}Z")
    }


def test_loading_a_dump_closes_noted_gaps(lake: Lake, k2: K2, tmp_path: Path) -> None:
    append(lake, [10, 14], reason="an API key is needed")
    assert [each["missing"] for each in listed(k2)] == [3]
    dump = tmp_path / "BTCUSDT-trades-2024-08-08.csv"
    time_us = int(times(0).timestamp()) * 1_000_000
    dump.write_text(
        "".join(
            f"{n},61800.00000000,0.00000001,0.00061800,{time_us + n},True,True\n" for n in (11, 12)
        )
    )
    k2("load", "csv", dump, "--layout", "binance-trades")
    (left,) = listed(k2)
    assert (left["first_id"], left["last_id"]) == (13, 13)
    assert left["reason"] == "an API key is needed"
    dump.with_name("BTCUSDT-trades-2024-08-09.csv").write_text(
        f"13,61800.00000000,0.00000001,0.00061800,{time_us + 13},True,True\n"
    )
    k2("load", "csv", dump.with_name("BTCUSDT-trades-2024-08-09.csv"), "--layout", "binance-trades")
    assert listed(k2) == []
    snapshot = lake.open(TRADES).iceberg.current_snapshot()
    assert snapshot is not None
    assert snapshot.summary is not None
    assert "k2.gaps" not in snapshot.summary.additional_properties


def test_gaps_fail_on_request(lake: Lake, k2: K2) -> None:
    append(lake, [1, 2, 3])
    done = k2("query", "gaps", "--fail-on-gaps")
    assert "no rows matched" in done.stderr
    append(lake, [5, 9])
    assert k2("query", "gaps").exit_code == 0
    done = k2("query", "gaps", "--fail-on-gaps", "--format", "ndjson", code=6)
    assert len(done.stdout.splitlines()) == 2
    assert "error: 2 gaps in the trade ids" in done.stderr
    assert "hint: " in done.stderr


@pytest.mark.parametrize(
    ("args", "unknown"),
    [
        (("--symbol", "BTCUDST"), "BTCUDST"),
        (("--symbol", "BTCUSDT,ETH/USDT"), "ETHUSDT"),
        (("--exchange", "BINANCE_US"), "BINANCE_US"),
        (("--symbol", "BTCUSDT", "--exchange", "BINANCE_US"), "BTCUSDT"),
    ],
)
def test_a_check_for_gaps_of_what_is_not_stored_fails(
    lake: Lake, k2: K2, args: tuple[str, ...], unknown: str
) -> None:
    append(lake, [1, 2, 3])
    message = f"no trades with ids of {unknown}: gaps cannot be found"
    done = k2("query", "gaps", *args, "--fail-on-gaps", code=4)
    assert f"error: {message}" in done.stderr
    assert message in k2("query", "gaps", *args).stderr
    append(lake, [5])
    assert "error: " not in k2("query", "gaps", "-s", "BTC/USDT").stderr
    k2("query", "gaps", "-s", "BTC/USDT", "--fail-on-gaps", code=6)


def test_gaps_are_selected_by_symbol_and_exchange(lake: Lake, k2: K2) -> None:
    append(lake, [10, 12])
    append(lake, [10, 13], symbol="ETHUSDT")
    assert [each["symbol"] for each in listed(k2, "--symbol", "ethusdt")] == ["ETHUSDT"]
    assert len(listed(k2, "--exchange", "binance")) == 2
    assert listed(k2, "--exchange", "BINANCE_US") == []
    assert listed(k2, "--symbol", "BTCUSDT", "--symbol", "XRPUSDT")[0]["missing"] == 1


@pytest.mark.parametrize("fmt", [each.value for each in Format])
def test_every_format_has_the_gaps(lake: Lake, k2: K2, tmp_path: Path, fmt: str) -> None:
    append(lake, [10, 12], reason="交易所")
    out = tmp_path / "gaps"
    k2("query", "gaps", "--format", fmt, "-o", out)
    assert out.stat().st_size > 0


def test_without_tables_there_is_nothing_to_query(k2: K2) -> None:
    assert "error: " in k2("query", "gaps", code=4).stderr


def test_numbers_that_were_seen_without_a_row_are_no_gaps(lake: Lake, k2: K2) -> None:
    """The times around a gap are those of the next rows."""
    append(lake, [10, 11, 20, 21])
    seen = Stored(exact=np.array([[12, 13], [18, 19]], dtype=np.int64))
    lake.open(TRADES).append(TRADES.arrow.empty_table(), seen={BTC: seen})
    (gap,) = listed(k2)
    assert (gap["first_id"], gap["last_id"]) == (14, 17)
    assert gap["time_before"] == f"{times(11):%Y-%m-%dT%H:%M:%S.%f}Z"
    assert gap["time_after"] == f"{times(20):%Y-%m-%dT%H:%M:%S.%f}Z"


def test_rows_without_exchange_numbers_have_no_gaps(lake: Lake, k2: K2) -> None:
    rows = [trade_row(message_id=f"line-{n}", source_sequence=None) for n in (1, 5)]
    lake.open(TRADES).append(table_of(TRADES, rows))
    assert listed(k2) == []


def test_gaps_are_exact_if_the_position_is_not(lake: Lake, k2: K2) -> None:
    """More ranges than the position lists: the numbers of the rows are read."""
    numbers = [*range(0, 9_000, 2)]
    append(lake, numbers, reason="not fetched yet")
    assert len(listed(k2)) == len(numbers) - 1
    append(lake, [1, 8_997], reason="not fetched yet")
    rows = listed(k2)
    assert [each["first_id"] for each in rows] == list(range(3, 8_996, 2))
    assert {each["missing"] for each in rows} == {1}
    assert {each["reason"] for each in rows} == {"not fetched yet"}
    assert all(each["time_before"] and each["time_after"] for each in rows)


def test_gaps_are_exact_if_the_position_must_be_rebuilt(lake: Lake, k2: K2) -> None:
    append(lake, [10, 14], reason="not fetched yet")
    rows = [trade_row(source_sequence=n, timestamp=times(n)) for n in (12, 20)]
    append_as_another_engine(lake.open(TRADES).iceberg, table_of(TRADES, rows))
    assert [(each["first_id"], each["last_id"], each["reason"]) for each in listed(k2)] == [
        (11, 11, "not fetched yet"),
        (13, 13, "not fetched yet"),
        (15, 19, None),
    ]


def test_the_python_api_lists_gaps(
    lake: Lake, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("K2_")]:
        monkeypatch.delenv(name)
    append(lake, [10, 12])
    append(lake, [10, 15], symbol="ETHUSDT")
    with k2cli.open_lake(settings.home) as opened:
        rows = opened.gaps(symbol="ETHUSDT", tz="Australia/Sydney").arrow().to_pylist()
        assert [(each["symbol"], each["first_id"], each["missing"]) for each in rows] == [
            ("ETHUSDT", 11, 4)
        ]
        assert rows[0]["time_before"] == times(10)
        assert str(rows[0]["time_before"].tzinfo) == "Australia/Sydney"
        assert opened.gaps().polars()["missing"].to_list() == [1, 4]
