"""Which market a dump is of: paths, names, symbols and columns, alone and against each other."""

import io
import zipfile
from pathlib import Path
from typing import Any

import pytest

from k2cli.errors import BadData, ConfigError, K2Error
from k2cli.ingestion.csv.layout import load_layout, parse_layout
from k2cli.ingestion.csv.market import markets_of_symbol
from k2cli.ingestion.csv.source import CsvOptions, read_csv
from k2cli.ingestion.symbols import Market

SPOT_LINE = "7001,61800.1,0.5,30900.05,1723161348055,True,True"
FUTURES_LINE = "7001,61800.1,0.5,30900.05,1723161348055,true"
COINM_LINE = "7001,61800.1,5,0.00809060,1723161348055,true"
UM_HEADER = "id,price,qty,quote_qty,time,is_buyer_maker"
CM_HEADER = "id,price,qty,base_qty,time,is_buyer_maker"
SPOT_HEADER = "id,price,qty,quoteQty,time,isBuyerMaker,isBestMatch"
NAME = "BTCUSDT-trades-2024-08-08.csv"
PERP = "BTCUSD_PERP-trades-2024-08-08.csv"


def write(folder: Path, name: str, *lines: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def load(source: Path | io.BytesIO, **options: Any) -> list[dict[str, Any]]:
    batches = read_csv(source, load_layout("binance-trades"), CsvOptions(**options))
    rows = []
    for batch in batches:
        assert batch.rejects == []
        rows += [row for _, found in batch.rows for row in found.to_pylist()]
    return rows


def exchange_of(source: Path | io.BytesIO, **options: Any) -> str:
    rows = load(source, **options)
    asset_class = "crypto" if rows[0]["exchange"] in ("BINANCE", "BINANCE_US") else "futures"
    assert {row["asset_class"] for row in rows} == {asset_class}
    return str(rows[0]["exchange"])


@pytest.mark.parametrize(
    ("name", "lines", "exchange"),
    [
        (NAME, [SPOT_LINE], "BINANCE"),
        (NAME, [SPOT_HEADER, SPOT_LINE], "BINANCE"),
        (f"futures/um/daily/trades/BTCUSDT/{NAME}", [FUTURES_LINE], "BINANCE_USDM"),
        (f"futures/um/{NAME}", [UM_HEADER, FUTURES_LINE], "BINANCE_USDM"),
        (f"Futures/UM/monthly/{NAME}", [FUTURES_LINE], "BINANCE_USDM"),
        (f"futures/um/{NAME}", [f"{FUTURES_LINE},"], "BINANCE_USDM"),
        (f"futures/cm/daily/trades/BTCUSD_PERP/{PERP}", [COINM_LINE], "BINANCE_COINM"),
        (f"spot/daily/trades/BTCUSDT/{NAME}", [SPOT_LINE], "BINANCE"),
        (f"spot/daily/mirror/futures/um/{NAME}", [FUTURES_LINE], "BINANCE_USDM"),  # the innermost
        (f"futures/um/mirror/spot/daily/{NAME}", [SPOT_LINE], "BINANCE"),
        (f"futures/other/um/{NAME}", [SPOT_LINE], "BINANCE"),  # not the exchange's folders
        (f"spot/{NAME}", [SPOT_LINE], "BINANCE"),
        (NAME, [UM_HEADER, FUTURES_LINE], "BINANCE_USDM"),
        (PERP, [CM_HEADER, COINM_LINE], "BINANCE_COINM"),
        (PERP, [COINM_LINE], "BINANCE_COINM"),
        ("BTCUSD_240329-trades-2024-03-01.csv", [COINM_LINE], "BINANCE_COINM"),
        ("ADAUSD_210326-trades-2021-03-01.csv", [COINM_LINE], "BINANCE_COINM"),
        ("NEWUSD_270326-trades-2027-03-01.csv", [COINM_LINE], "BINANCE_COINM"),
        ("BTCUSDT_240329-trades-2024-03-01.csv", [FUTURES_LINE], "BINANCE_USDM"),
        ("ETHUSDC_270326-trades-2027-03-01.csv", [FUTURES_LINE], "BINANCE_USDM"),
        ("BTCBUSD_210129-trades-2021-01-01.csv", [FUTURES_LINE], "BINANCE_USDM"),
        ("usdm-BTCUSDT-trades-2024-08-08.csv", [FUTURES_LINE], "BINANCE_USDM"),
        ("um-BTCUSDT-trades-2024-08.csv", [FUTURES_LINE], "BINANCE_USDM"),
        ("coinm-BTCUSD_PERP-trades-2024-08-08.csv", [COINM_LINE], "BINANCE_COINM"),
        ("us-BTCUSD-trades-2024-08-08.csv", [SPOT_LINE], "BINANCE_US"),
        (NAME, ["trade_id,price,qty,quote_qty,time,maker", FUTURES_LINE], "BINANCE"),  # nobody's
        (NAME, ["damaged", "", SPOT_LINE], "BINANCE"),
    ],
)
def test_market_follows_from_the_file(
    tmp_path: Path, name: str, lines: list[str], exchange: str
) -> None:
    path = write(tmp_path, name, *lines)
    batches = list(read_csv(path, load_layout("binance-trades"), CsvOptions(symbol=None)))
    rows = [row for batch in batches for _, found in batch.rows for row in found.to_pylist()]
    assert [row["exchange"] for row in rows] == [exchange]


@pytest.mark.parametrize(
    ("name", "lines", "options", "messages"),
    [
        (f"futures/um/{NAME}", [FUTURES_LINE], {"market": Market.SPOT}, ("spot", "futures/um")),
        (f"futures/cm/{PERP}", [COINM_LINE], {"market": Market.USDM}, ("usdm", "futures/cm")),
        (f"futures/um/{PERP}", [COINM_LINE], {}, ("futures/um", "BTCUSD_PERP")),
        (f"spot/daily/{PERP}", [SPOT_LINE], {}, ("spot/daily", "BTCUSD_PERP")),
        (f"futures/um/{NAME}", [CM_HEADER, COINM_LINE], {}, ("futures/um", "base_qty")),
        (f"futures/cm/{NAME}", [UM_HEADER, FUTURES_LINE], {}, ("futures/cm", "quote_qty")),
        (NAME, [CM_HEADER, COINM_LINE], {"market": Market.SPOT}, ("spot", "base_qty")),
        (NAME, [UM_HEADER, FUTURES_LINE], {"market": Market.SPOT}, ("spot", "quote_qty")),
        (NAME, [UM_HEADER, FUTURES_LINE], {"market": Market.US}, ("us", "quote_qty")),
        (PERP, [COINM_LINE], {"market": Market.SPOT}, ("spot", "BTCUSD_PERP")),
        (NAME, [SPOT_LINE], {"symbol": "ETHUSD_PERP", "market": Market.SPOT}, ("ETHUSD_PERP",)),
        ("x.csv", [SPOT_LINE], {"symbol": "BTCUSDT_240329", "market": Market.COINM}, ("coinm",)),
        ("usdm-" + NAME, [FUTURES_LINE], {"market": Market.SPOT}, ("spot", "usdm-BTCUSDT")),
        ("usdm-" + PERP, [COINM_LINE], {}, ("usdm-BTCUSD_PERP", "BTCUSD_PERP")),
        ("spot-" + NAME, [UM_HEADER, FUTURES_LINE], {}, ("spot-BTCUSDT", "quote_qty")),
        (f"futures/um/{NAME}", [FUTURES_LINE], {"exchange": "BINANCE"}, ("BINANCE", "futures/um")),
        (NAME, [SPOT_LINE], {"market": Market.USDM}, ("usdm", "is_best_match")),
        (NAME, [SPOT_HEADER, SPOT_LINE], {"market": Market.USDM}, ("usdm", "is_best_match")),
        (NAME, [SPOT_LINE], {"market": Market.COINM}, ("coinm", "is_best_match")),
        (NAME, [f"{UM_HEADER},best_match", SPOT_LINE], {"market": Market.USDM}, ("is_best_match",)),
        (f"futures/um/{NAME}", [SPOT_LINE.lower()], {}, ("futures/um", "is_best_match")),
        (PERP, [SPOT_LINE], {}, ("BTCUSD_PERP", "is_best_match")),
        ("usdm-" + NAME, [SPOT_LINE], {}, ("usdm-BTCUSDT", "is_best_match")),
        (
            "x.csv",
            [SPOT_LINE],
            {"exchange": "BINANCE_USDM", "symbol": "BTCUSDT"},
            ("BINANCE_USDM",),
        ),
    ],
)
def test_contradiction_is_refused_with_its_evidence(
    tmp_path: Path, name: str, lines: list[str], options: dict[str, Any], messages: tuple[str, ...]
) -> None:
    with pytest.raises(BadData, match="contradicts") as caught:
        load(write(tmp_path, name, *lines), **options)
    for message in messages:
        assert message in str(caught.value)
    assert "--market" in str(caught.value.hint)
    assert caught.value.exit_code == 6


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        (NAME, [FUTURES_LINE]),
        (NAME, [FUTURES_LINE.replace("true", "True")]),
        (NAME, ["", FUTURES_LINE]),
        (NAME, ["damaged", FUTURES_LINE]),
        (NAME, [f"{FUTURES_LINE},"]),  # as an export of several markets writes it
        (NAME, ["id,price,qty,time,is_buyer_maker", "1,2,3,1723161348055,true"]),
        ("BTCUSDT_SETTLED-trades-2024-08-08.csv", [FUTURES_LINE]),
    ],
)
def test_futures_dump_of_unknown_market_asks_for_it(
    tmp_path: Path, name: str, lines: list[str]
) -> None:
    path = write(tmp_path, name, *lines)
    with pytest.raises(BadData, match="futures dump") as caught:
        load(path)
    assert "--market usdm" in str(caught.value.hint)
    batches = list(read_csv(path, load_layout("binance-trades"), CsvOptions(market=Market.USDM)))
    assert sum(rows.num_rows for batch in batches for _, rows in batch.rows) == 1


def test_explicit_market_wins_over_missing_columns(tmp_path: Path) -> None:
    path = write(tmp_path, NAME, FUTURES_LINE)
    assert exchange_of(path, market=Market.SPOT) == "BINANCE"
    assert exchange_of(path, exchange="BINANCE_USDM") == "BINANCE_USDM"


def test_relative_path_from_inside_the_folder_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, f"futures/um/daily/{NAME}", FUTURES_LINE)
    monkeypatch.chdir(path.parent)
    assert exchange_of(Path(NAME)) == "BINANCE_USDM"
    monkeypatch.chdir(tmp_path)
    write(tmp_path, NAME, SPOT_LINE)
    assert exchange_of(Path("futures/um/../..") / NAME) == "BINANCE"


def test_symlinks_count_at_both_ends(tmp_path: Path) -> None:
    path = write(tmp_path, f"futures/um/{NAME}", FUTURES_LINE)
    link = tmp_path / "latest" / NAME
    link.parent.mkdir()
    link.symlink_to(path)
    folder = tmp_path / "mirror"
    folder.symlink_to(path.parent)
    assert exchange_of(link) == "BINANCE_USDM"
    assert exchange_of(folder / NAME) == "BINANCE_USDM"
    wrong = tmp_path / "spot" / "daily" / NAME
    wrong.parent.mkdir(parents=True)
    wrong.symlink_to(path)
    with pytest.raises(BadData, match=r"spot/daily contradicts .*futures/um"):
        load(wrong)


@pytest.mark.parametrize(
    ("member", "line", "exchange"),
    [
        (f"futures/um/{NAME}", FUTURES_LINE, "BINANCE_USDM"),
        ("coinm-BTCUSD_PERP-trades-2024-08-08.csv", COINM_LINE, "BINANCE_COINM"),
        (PERP, COINM_LINE, "BINANCE_COINM"),
        (NAME, SPOT_LINE, "BINANCE"),
    ],
)
def test_member_of_a_zip_counts(tmp_path: Path, member: str, line: str, exchange: str) -> None:
    path = tmp_path / "dump.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, f"{line}\n")
    assert exchange_of(path, symbol="BTCUSD" if "USD_" in member else "BTCUSDT") == exchange
    if exchange != "BINANCE":
        with pytest.raises(BadData, match="--market spot contradicts"):
            load(path, symbol="BTCUSDT", market=Market.SPOT)


def test_stdin_has_only_columns_and_symbol() -> None:
    assert exchange_of(io.BytesIO(f"{SPOT_LINE}\n".encode()), symbol="BTCUSDT") == "BINANCE"
    assert exchange_of(io.BytesIO(f"{COINM_LINE}\n".encode()), symbol="BTCUSD_PERP") == (
        "BINANCE_COINM"
    )
    with pytest.raises(BadData, match="futures dump"):
        load(io.BytesIO(f"{FUTURES_LINE}\n".encode()), symbol="BTCUSDT")


@pytest.mark.parametrize("lines", [[COINM_LINE], [CM_HEADER, COINM_LINE]])
def test_base_quantity_of_coinm_is_kept(tmp_path: Path, lines: list[str]) -> None:
    (row,) = load(write(tmp_path, PERP, *lines))
    vendor = dict(row["vendor_data"])
    assert vendor["base_quantity"] == "0.00809060"
    assert "quote_quantity" not in vendor
    assert (row["currency"], vendor["base_asset"]) == ("USD", "BTC")


def test_quote_quantity_of_the_others_is_kept(tmp_path: Path) -> None:
    (row,) = load(write(tmp_path, f"futures/um/{NAME}", FUTURES_LINE))
    vendor = dict(row["vendor_data"])
    assert vendor["quote_quantity"] == "30900.05"
    assert "base_quantity" not in vendor


def test_symbols_of_other_markets_in_a_column_are_rejects(tmp_path: Path) -> None:
    layout = parse_layout(
        """
        kind = "trades"
        header = "none"
        columns = ["s", "id", "p", "q", "t"]
        market = true
        fields = { symbol = "s", id = "id", price = "p", quantity = "q", timestamp = "t" }
        time = { how = "epoch" }
        """,
        origin="text",
    )
    lines = [f"{symbol},1,1,1,1723161348055" for symbol in ("BTCUSDT", "BTCUSD_PERP", "币USDT")]
    path = write(tmp_path, "x.csv", *lines)
    (batch,) = list(read_csv(path, layout, CsvOptions()))
    assert [row["symbol"] for row in batch.rows[0][1].to_pylist()] == ["BTCUSDT", "币USDT"]
    assert [reject.position for reject in batch.rejects] == [2]
    assert "not on the market spot" in batch.rejects[0].reason


def test_name_that_is_not_ascii_is_read_in_any_normal_form(tmp_path: Path) -> None:
    for symbol, expected in (("币安人生USDT", "币安人生USDT"), ("e\u0301USDT", "éUSDT")):
        path = write(tmp_path, f"{symbol}-trades-2026-02-01.csv", SPOT_LINE)
        (row,) = load(path)
        assert (row["symbol"], row["currency"]) == (expected, "USDT")
        (row,) = load(path, symbol=symbol.lower())
        assert row["symbol"] == expected
        path.unlink()


@pytest.mark.parametrize(
    ("symbol", "markets"),
    [
        ("BTCUSDT", set(Market)),
        ("btcusd_perp", {Market.COINM}),
        (" BTCUSD_240329 ", {Market.COINM}),
        ("BTCUSDT_240329", {Market.USDM}),
        ("ICPUSDT_SETTLED", {Market.USDM, Market.COINM}),
        ("AERGOUSDTSETTLED", {Market.USDM, Market.COINM}),
        ("FOOBAR_240329", {Market.USDM, Market.COINM}),
        ("", set(Market)),
    ],
)
def test_markets_that_a_symbol_can_be_of(symbol: str, markets: set[Market]) -> None:
    assert markets_of_symbol(symbol) == markets


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('market_columns = { moon = { p = "x" } }', "market_columns.moon"),
        ('market_columns = { coinm = { nope = "x" } }', "market_columns.coinm.nope"),
    ],
)
def test_unknown_market_columns_are_a_config_error(text: str, key: str) -> None:
    toml = f"""
        {text}
        kind = "trades"
        header = "none"
        columns = ["p", "q", "t"]
        market = true
        fields = {{ price = "p", quantity = "q", timestamp = "t" }}
        time = {{ how = "epoch" }}
    """
    with pytest.raises(ConfigError, match=key):
        parse_layout(toml, origin="text")


def test_file_that_cannot_be_entered_is_not_looked_into(tmp_path: Path) -> None:
    """A loop of symlinks behind a name is an error of the file, not of the inference."""
    loop = tmp_path / NAME
    loop.symlink_to(loop)
    with pytest.raises(K2Error, match=NAME):
        load(loop)
