"""`k2 export`: load -> export -> load is the identity."""

from pathlib import Path

import pyarrow as pa
import pytest

from k2cli.config import load_settings
from k2cli.ingestion.symbols import Market
from k2cli.records import KINDS
from k2cli.simulator import SimulatorOptions, running_simulator
from k2cli.storage.lake import open_lake
from support.running import Run

# What depends on when and from which file a row was loaded.
_OWN = ("message_id", "ingestion_timestamp", "trade_id", "quote_id")


def rows_of(home: Path, kind: str, *, has_ids: bool) -> pa.Table:
    """All rows but what is a load's own, in an order of their own."""
    with open_lake(load_settings({"K2_HOME": str(home)})) as lake:
        table = lake.open(KINDS[kind]).iceberg.scan().to_arrow().cast(KINDS[kind].arrow)
    own = _OWN if not has_ids else ("ingestion_timestamp",)
    kept = table.drop_columns([name for name in own if name in table.column_names])
    plain = [f.name for f in kept.schema if not pa.types.is_nested(f.type)]
    return kept.sort_by([(name, "ascending") for name in plain])


def there_and_back(
    run: Run, tmp_path: Path, source: Path, layout: str, kind: str, *options: str
) -> tuple[pa.Table, pa.Table, str]:
    homes = [tmp_path / "one", tmp_path / "two"]
    out = tmp_path / source.name
    layouts = ["--layout", layout]
    for home, path in zip(homes, (source, out), strict=True):
        args = ["load", "csv", str(path), *layouts, *options, "--home", str(home)]
        loaded = run(args)
        assert loaded.exit_code == 0, loaded.stderr
        if home == homes[0]:
            args = ["export", kind, *layouts, "-o", str(out), "--home", str(home)]
            exported = run(args)
            assert exported.exit_code == 0, exported.stderr
    has_ids = layout == "binance-trades"
    first, second = (rows_of(home, kind, has_ids=has_ids) for home in homes)
    return first, second, out.read_text()


@pytest.mark.parametrize(
    "sample",
    [
        ("binance-derived/spot-BTCUSDT-trades-2024-08-08.csv", "binance-trades", "trades", ()),
        (
            "binance-derived/usdm-ETHUSDT-trades-2024-07-18.csv",
            "binance-trades",
            "trades",
            ("--market", "usdm"),
        ),
        ("asx/trades/7078.csv", "asx-trades", "trades", ("--symbol", "BHP")),
        ("asx/quotes/7181.csv", "asx-quotes", "quotes", ("--symbol", "X")),
    ],
)
def test_sample_comes_back_as_it_was(
    run: Run, tmp_path: Path, recordings: Path, sample: tuple[str, str, str, tuple[str, ...]]
) -> None:
    name, layout, kind, options = sample
    first, second, _ = there_and_back(run, tmp_path, recordings / name, layout, kind, *options)
    assert first.num_rows > 500
    assert second.equals(first)


def test_generic_file_comes_back_with_its_own_columns(run: Run, tmp_path: Path) -> None:
    source = tmp_path / "in" / "mine.csv"
    source.parent.mkdir()
    source.write_text(
        "symbol,timestamp,price,quantity,side,currency,desk\n"
        "A,2024-08-08T10:00:00Z,1.5,2,buy,USD,north\n"
        'A,2024-08-08T10:00:00Z,1.5,2,sell,USD,"a ""quoted"", desk"\n'
    )
    options = ("--exchange", "X", "--asset-class", "crypto")
    first, second, text = there_and_back(
        run, tmp_path, source, "generic-trades", "trades", *options
    )
    assert second.equals(first)
    assert "desk" in text.splitlines()[0]


def test_ids_of_any_kind_come_back(run: Run, tmp_path: Path) -> None:
    source = tmp_path / "in" / "mine.csv"
    source.parent.mkdir()
    rows = [f"A,2024-08-08T10:00:0{n}Z,1.5,2,USD,{id_}\n" for n, id_ in enumerate(("7", "A1", ""))]
    source.write_text("symbol,timestamp,price,quantity,currency,trade_id\n" + "".join(rows))
    options = ("--exchange", "X", "--asset-class", "crypto")
    first, second, text = there_and_back(
        run, tmp_path, source, "generic-trades", "trades", *options
    )
    assert second.equals(first)
    place = text.splitlines()[0].split(",").index("id")
    assert [line.split(",")[place] for line in text.splitlines()[1:]] == ["7", "A1", ""]


def test_answer_of_a_query_can_be_loaded(run: Run, tmp_path: Path, recordings: Path) -> None:
    name = "spot-BTCUSDT-trades-2024-08-08.csv"
    sample = recordings / "binance-derived" / name
    homes = [tmp_path / "one", tmp_path / "two"]
    answer = tmp_path / "answer.csv"
    binance, generic = ["--layout", "binance-trades"], ["--layout", "generic-trades"]
    for args in (
        ["load", "csv", str(sample), *binance, "--home", str(homes[0])],
        ["query", "trades", "-o", str(answer), "--home", str(homes[0])],
        ["load", "csv", str(answer), *generic, "--home", str(homes[1])],
    ):
        result = run(args)
        assert result.exit_code == 0, result.stderr
    one, two = (rows_of(home, "trades", has_ids=True) for home in homes)
    assert one.num_rows == 7_981
    assert two.drop_columns("vendor_data").equals(one.drop_columns("vendor_data"))


def test_layout_of_the_other_kind_is_refused(run: Run, tmp_path: Path) -> None:
    result = run(["export", "trades", "--layout", "asx-quotes", "-o", str(tmp_path / "x.csv")])
    assert result.exit_code == 2
    assert "k2 export quotes" in result.stderr


def test_file_is_not_overwritten(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("mine")
    result = run(["export", "trades", "--layout", "asx-trades", "-o", str(path)])
    assert result.exit_code == 2
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("folder", "symbol", "lines"),
    [
        ("futures/cm", "BTCUSD_PERP", ["801001,42314.1,5,0.01181642,1704067200053,true"]),
        (
            "futures/cm",
            "BTCUSD_240329",
            [
                "id,price,qty,base_qty,time,is_buyer_maker",
                "801001,42314.1,5,0.01181642,1704067200053,true",
                "801002,42314.1,1,,1704067200054,false",
            ],
        ),
        ("futures/um", "BTCUSDT", ["801001,42314.1,0.5,21157.05,1704067200053,true"]),
        ("spot/daily", "币安人生USDT", ["801001,0.16,0.5,0.08,1704067200053,True,True"]),
    ],
    ids=["coinm", "coinm-with-a-header", "usdm", "spot-in-chinese"],
)
def test_dump_of_every_market_comes_back(
    run: Run, tmp_path: Path, folder: str, symbol: str, lines: list[str]
) -> None:
    source = tmp_path / folder / f"{symbol}-trades-2024-01-01.csv"
    source.parent.mkdir(parents=True)
    source.write_text("\n".join(lines) + "\n", encoding="utf-8")
    home, out, again = tmp_path / "home", tmp_path / "out" / source.name, tmp_path / "again"
    out.parent.mkdir()
    market = {"futures/cm": "coinm", "futures/um": "usdm"}.get(folder, "spot")
    layout = ["--layout", "binance-trades"]
    for args in (
        ["load", "csv", str(source), *layout, "--home", str(home)],
        ["export", "trades", *layout, "-s", symbol, "-o", str(out), "--home", str(home)],
        ["load", "csv", str(out), *layout, "--market", market, "--home", str(again)],
    ):
        result = run(args)
        assert result.exit_code == 0, result.stderr
    rows = [line.split(",") for line in lines if not line.startswith("id")]
    exported = [line.split(",") for line in out.read_text(encoding="utf-8").splitlines()]
    assert [(row[0], row[3], row[4]) for row in exported] == [(r[0], r[3], r[4]) for r in rows]
    assert {len(row) for row in exported} == {len(rows[0])}
    one, two = (rows_of(each, "trades", has_ids=True) for each in (home, again))
    assert two.equals(one)


def test_rows_of_several_markets_keep_their_own_amounts(run: Run, tmp_path: Path) -> None:
    home, out = tmp_path / "home", tmp_path / "out.csv"
    files = {
        "futures/cm/BTCUSD_PERP-trades-2024-01-01.csv": "1,42314,5,0.01181642,1704067200053,true",
        "futures/um/BTCUSDT-trades-2024-01-01.csv": "2,42314,1,42314.0,1704067200054,true",
        "BTCUSDT-trades-2024-01-01.csv": "3,42314,2,84628.0,1704067200055,True,False",
    }
    for name, line in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{line}\n")
        args = ["load", "csv", str(tmp_path / name), "--layout", "binance-trades"]
        result = run([*args, "--home", str(home)])
        assert result.exit_code == 0, result.stderr
    args = ["export", "trades", "--layout", "binance-trades", "-o", str(out), "--home", str(home)]
    assert run(args).exit_code == 0
    rows = sorted(line.split(",") for line in out.read_text().splitlines())
    assert [(row[0], row[3], row[6]) for row in rows] == [
        ("1", "0.01181642", ""),
        ("2", "42314.0", ""),
        ("3", "84628.0", "false"),
    ]


def test_streamed_coinm_trade_has_no_amount_of_coins(run: Run, tmp_path: Path) -> None:
    """It follows from the size of the contract, which no frame has: nothing is made up."""
    frames = tmp_path / "frames.ndjson"
    frames.write_text(
        '{"stream":"btcusd_perp@trade","data":{"e":"trade","E":1723161258769,"T":1723161258762,'
        '"s":"BTCUSD_PERP","t":8,"p":"61800.1","q":"5","X":"MARKET","m":false}}\n'
    )
    home, out = tmp_path / "home", tmp_path / "out.csv"
    options = SimulatorOptions(market=Market.COINM, frames=frames)
    with running_simulator(options) as simulator:
        args = ["stream", "binance", "--market", "coinm", "--url", simulator.url]
        result = run([*args, "-s", "BTCUSD_PERP", "--max-messages", "1", "--home", str(home)])
        assert result.exit_code == 0, result.stderr
    args = ["export", "trades", "--layout", "binance-trades", "-o", str(out), "--home", str(home)]
    assert run(args).exit_code == 0
    assert out.read_text() == "8,61800.10000000,5.00000000,,1723161258762,false\n"


ISO_TRADES = """id,price,quantity,time,side
9,10.5,1,2024-04-06T15:30:00.123456Z,buy
10,10.5,1,2024-04-06T15:30:00.123456Z,sell
11,10.5,1,2024-04-06T16:30:00.123456Z,sell
"""
ABOUT = ("--symbol", "BHP", "--exchange", "ASX", "--asset-class", "equities", "--currency", "AUD")


def test_zone_is_written_with_offsets_and_read_back(run: Run, tmp_path: Path) -> None:
    """Also where the clock is turned back; the order is that of the instants, and of the ids."""
    source, out, homes = tmp_path / "in.csv", tmp_path / "out.csv", [tmp_path / "1", tmp_path / "2"]
    source.write_text(ISO_TRADES)
    layout = ["--layout", "generic-trades"]
    loaded = run(["load", "csv", str(source), *layout, *ABOUT], env={"K2_HOME": str(homes[0])})
    assert loaded.exit_code == 0, loaded.stderr
    export = ["export", "trades", *layout, "--tz", "Australia/Sydney", "-o", str(out)]
    exported = run(export, env={"K2_HOME": str(homes[0])})
    assert exported.exit_code == 0, exported.stderr
    lines = out.read_text().splitlines()[1:]
    assert [line.partition(",")[0] for line in lines] == [
        "2024-04-07T02:30:00.123456+11:00",
        "2024-04-07T02:30:00.123456+11:00",
        "2024-04-07T02:30:00.123456+10:00",
    ]
    assert [line.split(",")[4] for line in lines] == ["9", "10", "11"]
    loaded = run(["load", "csv", str(out), *layout], env={"K2_HOME": str(homes[1])})
    assert loaded.exit_code == 0, loaded.stderr
    first, second = (rows_of(home, "trades", has_ids=True) for home in homes)
    assert first.equals(second)


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        ("binance-trades", "the layout writes epochs"),
        ("asx-trades", "the layout writes local times of Australia/Sydney"),
    ],
)
def test_zone_is_refused_for_times_without_offset(run: Run, layout: str, said: str) -> None:
    result = run(["export", "trades", "--layout", layout, "--tz", "Asia/Tokyo"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr


def test_unknown_symbol_is_explained(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("timestamp,price,size,symbol\n2024-08-08T10:00:00Z,1,2,BTCUSDT\n")
    options = ["-l", "generic-trades", "--exchange", "X", "--asset-class", "crypto"]
    assert run(["load", "csv", str(path), *options]).exit_code == 0
    for symbol, said in (("BTCUSD", "did you mean BTCUSDT?"), ("NOPE", "there are BTCUSDT")):
        result = run(["export", "trades", "-l", "generic-trades", "--symbol", symbol])
        assert result.exit_code == 0
        assert f"no trades of {symbol}" in result.stderr
        assert said in result.stderr


def test_asx_file_comes_back_under_the_number_of_its_company(run: Run, tmp_path: Path) -> None:
    source = tmp_path / "7078.csv"
    source.write_text("03/10/2014,07:57:14.754,36.667,20000,3,X,\n")
    first, second, _ = there_and_back(
        run, tmp_path / "x", source, "asx-trades", "trades", "--symbol", "BHP"
    )
    assert first.equals(second)
