"""Symbols as users and the exchange write them."""

import pytest

from k2cli.errors import UsageError
from k2cli.ingestion.binance.venues import VENUES
from k2cli.ingestion.symbols import Instrument, Market, parse_symbol
from k2cli.symbols import stored_spellings


@pytest.mark.parametrize(
    ("text", "symbol", "base", "quote"),
    [
        ("BTCUSDT", "BTCUSDT", "BTC", "USDT"),
        ("ETHBTC", "ETHBTC", "ETH", "BTC"),
        ("BNBEUR", "BNBEUR", "BNB", "EUR"),
        ("BNBUSD", "BNBUSD", "BNB", "USD"),
        ("SHIBUSD", "SHIBUSD", "SHIB", "USD"),
        ("OMGBUSD", "OMGBUSD", "OMG", "BUSD"),
        ("BNBBUSD", "BNBBUSD", "BNB", "BUSD"),
        ("DOTUSD", "DOTUSD", "DOT", "USD"),
        ("BTCTUSD", "BTCTUSD", "BTC", "TUSD"),
        ("DOTTUSD", "DOTTUSD", "DOT", "TUSD"),
        ("BTCTUSDT", "BTCTUSDT", "BTCT", "USDT"),
        ("BTCFDUSD", "BTCFDUSD", "BTC", "FDUSD"),
        ("BTCUSDC", "BTCUSDC", "BTC", "USDC"),
        ("1000SATSUSDT", "1000SATSUSDT", "1000SATS", "USDT"),
        ("USDTTRY", "USDTTRY", "USDT", "TRY"),
        ("ETHUSD_PERP", "ETHUSD_PERP", "ETH", "USD"),
        ("BTCUSDT_250926", "BTCUSDT_250926", "BTC", "USDT"),
    ],
)
def test_symbol_splits_into_base_and_quote(text: str, symbol: str, base: str, quote: str) -> None:
    assert parse_symbol(text, Market.SPOT) == Instrument(symbol, base, quote)


@pytest.mark.parametrize("text", ["btcusdt", "BtcUsdt", " BTCUSDT ", "BTC/USDT", "btc-usdt"])
def test_symbol_in_any_spelling_is_the_same(text: str) -> None:
    assert parse_symbol(text, Market.SPOT) == Instrument("BTCUSDT", "BTC", "USDT")


def test_written_split_wins_over_the_known_quote_assets() -> None:
    assert parse_symbol("FOO/BAR", Market.SPOT) == Instrument("FOOBAR", "FOO", "BAR")
    assert parse_symbol("BNBB/USD", Market.SPOT) == Instrument("BNBBUSD", "BNBB", "USD")


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "B", "BTC USDT", "BTC@USDT", "BTCUSDT@trade", "BTCUSDT\n?x", "BTC/", "/USDT"),
        *(
            "BTC/USDT/EUR",
            "BTCUSDT_PERPETUAL",
            "BTCUSDT_2509",
            "_PERP",
            "BTC\u200bUSDT",
            "BTC\u00a0USDT",
        ),
        *("币安 人生USDT", "/USDT币", "BTCUSDT_二五", "\x00USDT"),
        "X" * 31,
    ],
    ids=[
        "empty",
        "space",
        "one-letter",
        "with-a-space",
        "with-an-at-sign",
        "stream",
        "newline",
        "no-quote",
        "no-base",
        "three-parts",
        "unknown-suffix",
        "short-date",
        "suffix-alone",
        "zero-width-space",
        "no-break-space",
        "name-with-a-space",
        "no-base-in-chinese",
        "date-in-chinese",
        "nul",
        "too-long",
    ],
)
def test_text_that_is_no_symbol_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="is not a symbol"):
        parse_symbol(text, Market.SPOT)


@pytest.mark.parametrize("text", ["FOOBAR", "BTCXYZ", "USDT", "XYZ_PERP"])
def test_unknown_quote_asset_asks_for_the_split(text: str) -> None:
    with pytest.raises(UsageError, match="quote asset") as caught:
        parse_symbol(text, Market.SPOT)
    assert "FOO/BAR" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("market", "symbol", "base", "quote"),
    [
        (Market.SPOT, "ADAEUR", "ADA", "EUR"),
        (Market.SPOT, "BTCAEUR", "BTC", "AEUR"),
        (Market.SPOT, "ARBUSD", "AR", "BUSD"),
        (Market.US, "ARBUSD", "ARB", "USD"),
        (Market.US, "USDTUSD", "USDT", "USD"),
        (Market.US, "BTCUSD4", "BTC", "USD4"),
        (Market.US, "TUSD", "T", "USD"),
        (Market.SPOT, "TUSDT", "T", "USDT"),
        (Market.SPOT, "USDSBUSDS", "USDSB", "USDS"),
        (Market.USDM, "BTCU", "BTC", "U"),
        (Market.USDM, "1000LUNCBUSD", "1000LUNC", "BUSD"),
        (Market.USDM, "ETHBTC", "ETH", "BTC"),
        (Market.USDM, "BTCUSDT_240329", "BTC", "USDT"),
        (Market.COINM, "BNBUSD_240329", "BNB", "USD"),
    ],
)
def test_market_decides_how_a_listed_symbol_is_split(
    market: Market, symbol: str, base: str, quote: str
) -> None:
    instrument = parse_symbol(symbol, market)
    assert instrument == Instrument(symbol, base, quote)
    assert not instrument.is_guess


@pytest.mark.parametrize(
    ("market", "symbol", "base", "quote"),
    [
        (Market.SPOT, "NEWAEUR", "NEWA", "EUR"),  # AEUR has three pairs, EUR many
        (Market.SPOT, "NEWFDUSD", "NEW", "FDUSD"),
        (Market.SPOT, "SOLAEUR", "SOL", "AEUR"),  # SOL is a base asset, SOLA is none
        (Market.SPOT, "XRPRLUSD", "XRP", "RLUSD"),
        (Market.US, "NEWUSDT", "NEW", "USDT"),
        (Market.COINM, "WLDUSD_PERP", "WLD", "USD"),
        (Market.USDM, "LITUSDTSETTLED", "LIT", "USDT"),
        (Market.USDM, "ICPUSDT_SETTLED", "ICP", "USDT"),
    ],
)
def test_symbol_of_no_list_is_split_by_its_likeliest_end(
    market: Market, symbol: str, base: str, quote: str
) -> None:
    assert parse_symbol(symbol, market) == Instrument(symbol, base, quote)


@pytest.mark.parametrize(
    ("text", "symbol", "base"),
    [
        ("币安人生USDT", "币安人生USDT", "币安人生"),
        ("币安人生usdt", "币安人生USDT", "币安人生"),
        ("币安人生/usdt", "币安人生USDT", "币安人生"),
        ("straßeUSDT", "STRAßEUSDT", "STRAßE"),  # only ASCII letters change their case
        ("éUSDT", "éUSDT", "é"),
        ("e\u0301USDT", "éUSDT", "é"),  # the same, decomposed
        ("🐸USDT", "🐸USDT", "🐸"),
    ],
    ids=["chinese", "lower-case", "with-a-slash", "sharp-s", "accent", "decomposed", "frog"],
)
def test_symbol_that_is_not_ascii(text: str, symbol: str, base: str) -> None:
    assert parse_symbol(text, Market.SPOT) == Instrument(symbol, base, "USDT")


def test_complaint_about_a_huge_text_is_short() -> None:
    with pytest.raises(UsageError) as caught:
        parse_symbol("x" * 1_000_000, Market.SPOT)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("market", "exchange", "asset_class", "has_microseconds"),
    [
        (Market.SPOT, "BINANCE", "crypto", True),
        (Market.US, "BINANCE_US", "crypto", True),
        (Market.USDM, "BINANCE_USDM", "futures", False),
        (Market.COINM, "BINANCE_COINM", "futures", False),
    ],
)
def test_venue_of_a_market(
    market: Market, exchange: str, asset_class: str, has_microseconds: bool
) -> None:
    venue = VENUES[market]
    assert (venue.exchange, venue.asset_class) == (exchange, asset_class)
    assert venue.has_microseconds is has_microseconds
    assert all(url.startswith("wss://") for url in venue.urls)


@pytest.mark.parametrize(("urls", "has_own_rest_urls"), [([], True), (["ws://a", "ws://b"], False)])
def test_venue_with_other_servers_does_not_use_the_rest_api_of_its_own(
    urls: list[str], has_own_rest_urls: bool
) -> None:
    spot = VENUES[Market.SPOT]
    venue = spot.at(urls, [])
    assert venue.urls == (urls or spot.urls)
    assert venue.rest_urls == (spot.rest_urls if has_own_rest_urls else ())
    assert spot.at(urls, ["http://c", "http://d"]).rest_urls == ["http://c", "http://d"]
    assert venue.market is Market.SPOT


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("btc/usdt", ["BTC/USDT", "BTCUSDT"]),
        ("BRK-B", ["BRK-B", "BRKB"]),
        ("币安人生/usdt", ["币安人生/USDT", "币安人生USDT"]),
        ("e\u0301/USDT", ["\u00e9/USDT", "\u00e9USDT"]),  # in normal form NFC
    ],
)
def test_option_symbol_finds_both_spellings(text: str, names: list[str]) -> None:
    assert stored_spellings([text]) == names
