"""`k2 verify`: the table against the exchange's dump or REST API."""

import gzip
import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from k2cli.config import Settings
from k2cli.records import TRADES
from k2cli.storage.lake import Lake, open_lake
from support.builders import START, Row, dump_lines, rest_trades, table_of, trade_row
from support.foreign import append_as_another_engine
from support.restserver import Reply, Request, rest_server
from support.running import K2, Result, k2_at

DAY = "2024-08-08"
NAME = f"BTCUSDT-trades-{DAY}.csv"
MIDNIGHT = datetime(2024, 8, 9, tzinfo=UTC)


def row(number: int, **over: Any) -> Row:
    """Make the trade with this id, with a time in microseconds."""
    moment = START + timedelta(milliseconds=number, microseconds=123)
    values: Row = {
        "source_sequence": number,
        "trade_id": f"BINANCE-{number}",
        "timestamp": moment,
        "ingestion_timestamp": moment + timedelta(hours=1),
        "price": Decimal("61800.10000000") + number,
        "quantity": Decimal("0.00010000") * (1 + number % 7),
        "side": ("BUY", "SELL")[number % 2],
    }
    return trade_row(**values | over)


def rows(first: int, last: int) -> list[Row]:
    return [row(number) for number in range(first, last + 1)]


def store(lake: Lake, trades: Sequence[Row]) -> None:
    lake.open(TRADES).append(table_of(TRADES, list(trades)))


def stored(settings: Settings) -> list[Row]:
    with open_lake(settings) as lake:
        found: list[Row] = lake.open(TRADES).iceberg.scan().to_arrow().to_pylist()
    return sorted(found, key=lambda each: int(each["source_sequence"]))


def commits(settings: Settings) -> int:
    with open_lake(settings) as lake:
        return len(lake.open(TRADES).snapshots())


def zipped(text: str, name: str = NAME) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, text)
    return packed.getvalue()


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    """The day's dump: trades 100 to 199."""
    path = tmp_path / NAME
    path.write_text(dump_lines(rows(100, 199)))
    return path


@pytest.fixture
def k2(home: Path) -> K2:
    return k2_at(home)


def verify(k2: K2, *args: object, code: int = 0) -> Result:
    return k2("verify", "trades", "--symbol", "BTCUSDT", "--day", DAY, *args, code=code)


def document(k2: K2, *args: object, code: int = 0) -> Mapping[str, Any]:
    found = json.loads(verify(k2, *args, "--format", "json", code=code).stdout)
    assert found["result"] == ("FAIL" if code else "PASS")
    return {**found}


def nothing(found: Mapping[str, Any], *names: str) -> bool:
    return all(found[name]["count"] == 0 and found[name]["ids"] == [] for name in names)


# --- the table has what was published


def test_equal_trades_pass(k2: K2, lake: Lake, dump: Path) -> None:
    store(lake, rows(100, 199))
    found = document(k2, "--dump", dump)
    assert nothing(found, "missing", "extra", "differing", "repeated")
    assert (found["exchange"], found["symbol"], found["day"]) == ("BINANCE", "BTCUSDT", DAY)
    totals = {name: found["source"][name] for name in ("trades", "first_id", "last_id")}
    assert totals == {"trades": 100, "first_id": 100, "last_id": 199}
    volume = sum(each["quantity"] for each in rows(100, 199))
    turnover = sum(each["quantity"] * each["price"] for each in rows(100, 199))
    for side in ("source", "table"):
        assert Decimal(found[side]["volume"]) == volume
        assert Decimal(found[side]["turnover"]) == turnover
    assert found["source"]["sha256"] == hashlib.sha256(dump.read_bytes()).hexdigest()
    assert found["source"]["name"] == str(dump)


def test_text_ends_with_the_result(k2: K2, lake: Lake, dump: Path) -> None:
    store(lake, rows(100, 199))
    result = verify(k2, "--dump", dump)
    assert result.stdout.splitlines()[-1] == "PASS"
    assert result.stderr == ""
    assert "source     100       100      199" in result.stdout


def test_dump_in_milliseconds_equals_a_stream_in_microseconds(
    k2: K2, lake: Lake, dump: Path
) -> None:
    store(lake, rows(100, 199))
    dump.write_text(dump_lines(rows(100, 199), is_exact=False))
    document(k2, "--dump", dump)


@pytest.mark.parametrize("suffix", [".zip", ".csv.gz"])
def test_compressed_dump_with_a_checksum_passes(
    k2: K2, lake: Lake, dump: Path, suffix: str
) -> None:
    store(lake, rows(100, 199))
    text = dump.read_text()
    packed = dump.with_name(f"BTCUSDT-trades-{DAY}{suffix}")
    packed.write_bytes(zipped(text) if suffix == ".zip" else gzip.compress(text.encode()))
    assert not document(k2, "--dump", packed)["source"]["has_checksum"]
    digest = hashlib.sha256(packed.read_bytes()).hexdigest()
    packed.with_name(f"{packed.name}.CHECKSUM").write_text(f"{digest}  {packed.name}\n")
    assert document(k2, "--dump", packed)["source"]["has_checksum"]
    assert "checksum verified" in verify(k2, "--dump", packed).stdout


def test_other_symbols_days_and_exchanges_do_not_count(k2: K2, lake: Lake, dump: Path) -> None:
    others = [
        row(150, symbol="ETHUSDT"),
        row(151, exchange="BINANCE_USDM"),
        row(99, timestamp=START - timedelta(days=1)),
        row(300, timestamp=MIDNIGHT),
    ]
    store(lake, [*rows(100, 199), *others])
    document(k2, "--dump", dump)


def test_recorded_day_passes(k2: K2, recordings: Path, tmp_path: Path) -> None:
    recorded = recordings / "binance-derived" / "spot-BTCUSDT-trades-2024-08-08.csv"
    k2("load", "csv", recorded, "--layout", "binance-trades")
    found = document(k2, "--dump", recorded)
    assert found["table"]["trades"] == 7981
    lines = recorded.read_text().splitlines(keepends=True)
    part = tmp_path / "part.csv"
    part.write_text("".join([*lines[:1000], *lines[1003:]]))
    found = document(k2, "--dump", part, "--market", "spot", code=6)
    assert found["extra"]["count"] == found["source"]["holes"]["count"] == 3


def test_dump_of_futures_is_compared_with_the_trades_of_its_market(
    k2: K2, recordings: Path
) -> None:
    recorded = recordings / "binance-derived" / "usdm-ETHUSDT-trades-2024-07-18.csv"
    k2("load", "csv", recorded, "--layout", "binance-trades")
    args = ["verify", "trades", "-s", "ethusdt", "--day", "2024-07-18", "--dump", recorded]
    found = json.loads(k2(*args, "--format", "json").stdout)
    assert (found["exchange"], found["symbol"]) == ("BINANCE_USDM", "ETHUSDT")
    assert found["table"]["trades"] == 1640


# --- the table lacks trades


def test_missing_trades_fail_and_are_loaded_with_repair(
    k2: K2, lake: Lake, dump: Path, settings: Settings
) -> None:
    store(lake, [each for each in rows(100, 199) if each["source_sequence"] not in (110, 111, 150)])
    result = verify(k2, "--dump", dump, code=6)
    assert result.stdout.splitlines()[-1] == "FAIL"
    assert "110-111, 150" in result.stdout
    assert "error: trades of BTCUSDT on 2024-08-08: 3 missing\n" in result.stderr
    assert "hint: --repair" in result.stderr
    found = document(k2, "--dump", dump, code=6)
    assert found["missing"] == {"count": 3, "ids": [[110, 111], [150, 150]]}
    assert nothing(found, "extra", "differing", "repeated")
    before = commits(settings)
    found = document(k2, "--dump", dump, "--repair")
    assert (found["repaired"], commits(settings)) == (3, before + 1)
    marked = [
        each["source_sequence"]
        for each in stored(settings)
        if dict(each["vendor_data"]).get("backfilled") == "true"
    ]
    assert marked == [110, 111, 150]
    assert dict(stored(settings)[10]["vendor_data"])["is_best_match"] == "true"


def test_repair_is_idempotent(k2: K2, lake: Lake, dump: Path, settings: Settings) -> None:
    store(lake, rows(100, 150))
    assert "loaded 49 missing trades" in verify(k2, "--dump", dump, "--repair").stderr
    before = commits(settings)
    assert document(k2, "--dump", dump, "--repair")["repaired"] == 0
    assert commits(settings) == before


def test_repair_is_a_load_that_can_be_undone(
    k2: K2, lake: Lake, dump: Path, settings: Settings
) -> None:
    store(lake, rows(100, 197))
    verify(k2, "--dump", dump, "--repair")
    (load,) = json.loads(k2("load", "history", "--format", "json").stdout)
    assert (load["path"], load["layout"], load["rows"]) == (str(dump), "repair", 2)
    k2("load", "undo", dump)
    assert len(stored(settings)) == 98
    assert document(k2, "--dump", dump, "--repair")["repaired"] == 2
    assert document(k2, "--dump", dump)["result"] == "PASS"


def test_dump_can_be_loaded_after_a_repair(k2: K2, lake: Lake, dump: Path) -> None:
    store(lake, rows(100, 197))
    verify(k2, "--dump", dump, "--repair")
    loaded = k2("load", "csv", dump, "--layout", "binance-trades", "--summary", "json")
    assert json.loads(loaded.stdout)["duplicates"] == 100


def test_day_without_rows_is_missing_as_a_whole(k2: K2, lake: Lake, dump: Path) -> None:
    store(lake, [row(5, symbol="ETHUSDT")])
    found = document(k2, "--dump", dump, code=6)
    assert found["missing"] == {"count": 100, "ids": [[100, 199]]}
    assert found["table"]["trades"] == 0
    assert document(k2, "--dump", dump, "--repair")["repaired"] == 100


def test_without_a_table_only_repair_creates_one(k2: K2, dump: Path) -> None:
    result = verify(k2, "--dump", dump, code=4)
    assert "no tables" in result.stderr
    assert "hint: --repair" in result.stderr
    assert document(k2, "--dump", dump, "--repair")["repaired"] == 100


# --- the table has something else


def test_extra_and_differing_trades_stay(
    k2: K2, lake: Lake, dump: Path, settings: Settings
) -> None:
    wrong: dict[int, Row] = {
        101: {"price": Decimal("1.00000000")},
        102: {"quantity": Decimal("1.00000000")},
        103: {"side": "BUY"},
        104: {"timestamp": START + timedelta(milliseconds=105)},
        105: {"timestamp": MIDNIGHT + timedelta(hours=3)},  # another day
    }
    known = [row(number, **wrong.get(number, {})) for number in range(100, 199)]
    store(lake, [*known, row(98), row(99), row(500)])
    found = document(k2, "--dump", dump, "--repair", code=6)
    assert found["repaired"] == 1
    assert nothing(found, "missing", "repeated")
    assert found["extra"] == {"count": 3, "ids": [[98, 99], [500, 500]]}
    assert (found["differing"]["count"], found["differing"]["ids"]) == (5, [[101, 105]])
    first, second, *_ = found["differing"]["examples"]
    assert (first["id"], first["stored"]["price"]) == (101, "1.00000000")
    assert first["source"]["price"] == "61901.10000000"
    assert second["stored"]["quantity"] == "1.00000000"
    kept = {each["source_sequence"]: each for each in stored(settings)}
    assert kept[101]["price"] == Decimal("1.00000000")
    assert kept.keys() >= {98, 99, 500}
    result = verify(k2, "--dump", dump, code=6)
    assert "3 extra, 5 differing" in result.stderr
    assert "101: price 61901.10000000 (table: 1.00000000)" in result.stdout


def test_rows_that_another_engine_stored_twice_fail(k2: K2, lake: Lake, dump: Path) -> None:
    store(lake, rows(100, 199))
    append_as_another_engine(lake.open(TRADES).iceberg, table_of(TRADES, [row(120), row(121)]))
    found = document(k2, "--dump", dump, code=6)
    assert found["repeated"] == {"count": 2, "ids": [[120, 121]]}
    assert nothing(found, "missing", "extra", "differing")
    assert "hint: k2 table dedupe trades" in verify(k2, "--dump", dump, code=6).stderr


def test_rows_without_numbers_are_reported_and_not_compared(k2: K2, lake: Lake, dump: Path) -> None:
    line = row(150, source_sequence=None, message_id="00000000-0000-8000-8000-000000000001")
    # A line of a file, which another column gave a number.
    other = row(151, message_id="00000000-0000-8000-8000-000000000002")
    store(lake, [*rows(100, 199), line])
    append_as_another_engine(lake.open(TRADES).iceberg, table_of(TRADES, [other]))
    found = document(k2, "--dump", dump)
    assert (found["table"]["trades"], found["table"]["without_id"]) == (100, 2)
    assert "2 rows without the exchange's trade ids" in verify(k2, "--dump", dump).stderr


# --- the dump is not what it should be


def test_ids_that_the_dump_lacks_are_reported(k2: K2, lake: Lake, dump: Path) -> None:
    published = [each for each in rows(100, 199) if each["source_sequence"] not in (120, 121)]
    dump.write_text(dump_lines(published))
    store(lake, published)
    found = document(k2, "--dump", dump)
    assert found["source"]["holes"] == {"count": 2, "ids": [[120, 121]]}
    assert "lacks 2 ids itself: 120-121" in verify(k2, "--dump", dump).stderr
    store(lake, [row(120)])
    found = document(k2, "--dump", dump, code=6)
    assert found["extra"] == {"count": 1, "ids": [[120, 120]]}


def test_rows_of_another_day_are_ignored_and_counted(k2: K2, lake: Lake, dump: Path) -> None:
    others = [row(50, timestamp=START - timedelta(days=1)), row(900, timestamp=MIDNIGHT)]
    lines = dump_lines(rows(100, 199)).splitlines(keepends=True)
    lines[40:40] = [dump_lines([each]) for each in others]
    dump.write_text("".join(lines))
    store(lake, rows(100, 199))
    found = document(k2, "--dump", dump, "--repair")
    assert (found["source"]["other_days"], found["source"]["trades"]) == (2, 100)
    assert found["repaired"] == 0
    assert "2 trades of other days, which are ignored" in verify(k2, "--dump", dump).stderr


def test_row_of_another_day_whose_id_is_stored_on_this_day_differs(
    k2: K2, lake: Lake, dump: Path
) -> None:
    dump.write_text(dump_lines([*rows(100, 199), row(200, timestamp=MIDNIGHT)]))
    store(lake, rows(100, 200))
    assert document(k2, "--dump", dump, code=6)["differing"]["ids"] == [[200, 200]]


@pytest.mark.usefixtures("lake")
def test_dump_without_trades_of_the_day_is_refused(k2: K2, dump: Path) -> None:
    dump.rename(path := dump.with_name("renamed.csv"))
    path.write_text(dump_lines([row(9, timestamp=MIDNIGHT)]))
    result = verify(k2, "--dump", path, code=6)
    assert "has no trades of 2024-08-08: its 1 trades are of other days" in result.stderr
    assert result.stdout == ""


def test_repeated_rows_count_once(k2: K2, lake: Lake, dump: Path) -> None:
    dump.write_text(dump_lines([*rows(100, 199), *rows(150, 152)]))
    store(lake, rows(100, 151))
    found = document(k2, "--dump", dump, "--repair")
    assert (found["source"]["repeated"], found["source"]["trades"]) == (3, 100)
    assert found["repaired"] == 48
    assert "repeats 3 ids; each counts once" in verify(k2, "--dump", dump).stderr


@pytest.mark.parametrize("last", [149, 199])
def test_repeated_row_with_other_values_fails(k2: K2, lake: Lake, dump: Path, last: int) -> None:
    dump.write_text(dump_lines([*rows(100, 199), row(150, price=Decimal("7.00000000"))]))
    store(lake, rows(100, last))
    found = document(k2, "--dump", dump, "--repair", code=6)
    assert found["differing"]["ids"] == [[150, 150]]


def test_invalid_line_is_named(k2: K2, lake: Lake, dump: Path) -> None:
    lines = dump_lines(rows(100, 199)).splitlines(keepends=True)
    lines[7] = lines[7].replace("61907.1", "-61907.1")
    dump.write_text("".join(lines))
    store(lake, rows(100, 199))
    result = verify(k2, "--dump", dump, "--repair", code=6)
    assert f"error: {dump}: line 8: price" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{other}  {name}", "its SHA-256 is {digest}, not {other}"),
        ("{other} *{name}", "its SHA-256 is {digest}, not {other}"),
        ("{digest}  {name}\n{other}  another.zip\n", None),
        ("{other}  another.zip\n{other}  third.zip\n", "is malformed"),
        ("", "is malformed"),
        ("<html>not found</html>", "is malformed"),
        ("{digest}0  {name}", "is malformed"),
        ("{digest}  {name}\n404: not found", "is malformed"),
    ],
)
def test_checksum_file_is_verified(
    k2: K2, lake: Lake, dump: Path, text: str, said: str | None
) -> None:
    store(lake, rows(100, 199))
    digest = hashlib.sha256(dump.read_bytes()).hexdigest()
    names = {"digest": digest, "other": "0" * 64, "name": dump.name}
    dump.with_name(f"{dump.name}.CHECKSUM").write_text(text.format(**names))
    result = verify(k2, "--dump", dump, code=6 if said else 0)
    if said:
        assert said.format(**names) in result.stderr
        assert f"{dump.name}.CHECKSUM" in result.stderr
        assert result.stdout == ""


@pytest.mark.usefixtures("lake")
def test_what_is_not_a_zip_archive_is_refused(k2: K2, dump: Path) -> None:
    whole = zipped(dump_lines(rows(100, 199)))
    path = dump.with_name(f"BTCUSDT-trades-{DAY}.zip")
    for content in (b"<html>not found</html>", b"", whole[: len(whole) // 2], whole[:-40]):
        path.write_bytes(content)
        result = verify(k2, "--dump", path, "--repair", code=6)
        assert f"error: {path}" in result.stderr
        assert result.stdout == ""


@pytest.mark.usefixtures("lake")
def test_cut_off_gzip_is_refused(k2: K2, dump: Path, settings: Settings) -> None:
    path = dump.with_name(f"{NAME}.gz")
    path.write_bytes(gzip.compress(dump.read_bytes())[:-100])
    result = verify(k2, "--dump", path, "--repair", code=6)
    assert "cannot be read to its end" in result.stderr
    assert stored(settings) == []


@pytest.mark.parametrize(
    ("name", "market", "said"),
    [
        (f"usdm-{NAME}", "spot", "contradicts"),
        (NAME, "usdm", "contradicts"),
        (f"ETHUSDT-trades-{DAY}.csv", "spot", "indicates ETHUSDT, not BTCUSDT"),
        ("BTCUSDT-trades-2024-08-07.csv", "spot", "indicates 2024-08-07, not 2024-08-08"),
        ("BTCUSDT-trades-2024-09.csv", "spot", "indicates 2024-09, not 2024-08-08"),
        (f"BTCUSDT-aggTrades-{DAY}.csv", "spot", "indicates aggTrades"),
    ],
)
@pytest.mark.usefixtures("lake")
def test_dump_of_something_else_is_refused(
    k2: K2, dump: Path, name: str, market: str, said: str
) -> None:
    dump.rename(path := dump.with_name(name))
    result = verify(k2, "--dump", path, "--market", market, "--repair", code=6)
    assert said in result.stderr
    assert result.stdout == ""


@pytest.mark.usefixtures("lake")
def test_name_within_the_archive_counts(k2: K2, dump: Path) -> None:
    path = dump.with_name("day.zip")
    path.write_bytes(zipped(dump.read_text(), f"ETHUSDT-trades-{DAY}.csv"))
    assert "indicates ETHUSDT" in verify(k2, "--dump", path, code=6).stderr


def test_monthly_dump_is_compared_for_the_day(k2: K2, lake: Lake, dump: Path) -> None:
    path = dump.with_name("BTCUSDT-trades-2024-08.csv")
    path.write_text(dump_lines([*rows(100, 199), row(200, timestamp=MIDNIGHT)]))
    store(lake, rows(100, 199))
    assert document(k2, "--dump", path)["source"]["other_days"] == 1


# --- options


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--day", DAY], "neither --dump nor --rest given"),
        (["--day", DAY, "--dump", "x.csv", "--rest"], "only one of --dump and --rest"),
        (["--day", DAY, "--dump", "x.csv", "--rest-url", "http://x"], "requires --rest"),
        (["--day", "2024-08", "--rest"], "is not a day"),
        (["--day", "2024-02-30", "--rest"], "day"),
        (["--day", "9999-12-31", "--rest"], "is in the future"),
    ],
)
def test_wrong_options_are_refused(k2: K2, args: list[str], said: str) -> None:
    result = k2("verify", "trades", "-s", "BTCUSDT", *args, code=2)
    assert said in " ".join(result.stderr.split())


@pytest.mark.usefixtures("lake")
def test_missing_dump_is_not_found(k2: K2, tmp_path: Path) -> None:
    assert "does not exist" in verify(k2, "--dump", tmp_path / "x.csv", code=4).stderr


# --- the REST API


def over_rest(trades: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Make the rows of a stream with the same trades as the REST API."""
    return [
        row(
            each["id"],
            timestamp=datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=each["time"]),
            price=Decimal(each["price"]),
            quantity=Decimal(each["qty"]),
            side="SELL" if each["isBuyerMaker"] else "BUY",
        )
        for each in trades
    ]


def test_rest_is_compared_and_repaired(k2: K2, lake: Lake, settings: Settings) -> None:
    published = rest_trades(1500, first=2)  # 300 of them on the day, the others after midnight
    of_day = [each for each in published if each["time"] < MIDNIGHT.timestamp() * 1_000_000]
    assert 100 < len(of_day) < 1500
    known = over_rest(of_day)
    store(lake, [*known[:50], *known[60:]])
    with rest_server(published) as server:
        args = ["--rest", "--rest-url", server.url]
        found = document(k2, *args, code=6)
        assert found["missing"] == {"count": 10, "ids": [[52, 61]]}
        assert found["source"]["trades"] == len(of_day)
        assert (found["source"]["name"], found["source"]["sha256"]) == (server.url, None)
        before = commits(settings)
        found = document(k2, *args, "--repair")
        assert (found["repaired"], commits(settings)) == (10, before + 1)
        assert not found["is_partial"]
    (load,) = json.loads(k2("load", "history", "--format", "json").stdout)
    assert (load["path"], load["rows"]) == (server.url, 10)


def test_rest_of_several_pages_passes(k2: K2, lake: Lake) -> None:
    start = int(MIDNIGHT.timestamp() * 1_000_000) - 86_400_000_000
    published = [
        {**each, "time": start + number * 1000}
        for number, each in enumerate(rest_trades(2500, first=7_000))
    ]
    store(lake, over_rest(published))
    with rest_server(published) as server:
        found = document(k2, "--rest", "--rest-url", server.url)
    assert found["table"]["trades"] == found["source"]["trades"] == 2500


def test_day_without_trades_anywhere_passes_but_not_with_rows(k2: K2, lake: Lake) -> None:
    with rest_server([]) as server:
        args = ["--rest", "--rest-url", server.url]
        assert document(k2, *args)["source"]["first_id"] is None
        assert "BTCUSDT has no trades on 2024-08-08" in verify(k2, *args).stderr
        store(lake, rows(100, 101))
        assert document(k2, *args, code=6)["extra"]["ids"] == [[100, 101]]


def test_day_that_is_not_over_is_compared_up_to_the_newest(k2: K2, lake: Lake) -> None:
    now = int(datetime.now(UTC).timestamp() * 1_000_000)
    published = [{**each, "time": now - 1000 + each["id"]} for each in rest_trades(20, first=100)]
    newer = over_rest(rest_trades(1, first=120, time=now))
    store(lake, [*over_rest(published), *newer])
    with rest_server(published) as server:
        args = ["verify", "trades", "-s", "BTCUSDT", "--day", "today", "--rest"]
        result = k2(*args, "--rest-url", server.url, "--format", "json")
    found = json.loads(result.stdout)
    assert (found["table"]["trades"], found["is_partial"]) == (20, True)
    assert "is not over" in result.stderr


@pytest.mark.parametrize(
    ("day", "code", "said"),
    [("yesterday", 3, "need an API key: set binance.api_key"), ("2024-08-08", 4, "48 h")],
)
@pytest.mark.usefixtures("lake")
def test_what_the_exchange_refuses_to_serve_is_explained(
    k2: K2, day: str, code: int, said: str
) -> None:
    yesterday = datetime.now(UTC) - timedelta(days=1)
    time_ms = int(yesterday.timestamp() * 1000)
    published = [{**each, "time": time_ms} for each in rest_trades(20)]
    with rest_server(published) as server:
        args = ["--rest", "--rest-url", server.url, "--market", "usdm"]
        result = k2("verify", "trades", "-s", "BTCUSDT", "--day", day, *args, code=code)
    assert said in result.stderr
    assert "hint: use the exchange's dump of the day: --dump FILE" in result.stderr


@pytest.mark.usefixtures("lake")
def test_invalid_trade_of_the_rest_api_is_named(k2: K2, settings: Settings) -> None:
    published = rest_trades(20, first=100)
    published[7]["price"] = "-1"
    with rest_server(published) as server:
        result = verify(k2, "--rest", "--rest-url", server.url, "--repair", code=6)
    assert "107" in result.stderr
    assert "price" in result.stderr
    assert stored(settings) == []


@pytest.mark.usefixtures("lake")
def test_unknown_symbol_is_refused_by_the_exchange(k2: K2) -> None:
    def answer(_: Request) -> Reply:
        return Reply({"code": -1121, "msg": "Invalid symbol."}, 400)

    with rest_server([], answer) as server:
        result = verify(k2, "--rest", "--rest-url", server.url, code=4)
    assert "Invalid symbol" in result.stderr
