"""Symbols as users and the exchange write them."""

import pytest

from k2cli.errors import UsageError
from k2cli.ingestion.binance.symbols import VENUES, Instrument, Market, parse_symbol


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
    assert parse_symbol(text) == Instrument(symbol, base, quote)


@pytest.mark.parametrize("text", ["btcusdt", "BtcUsdt", " BTCUSDT ", "BTC/USDT", "btc-usdt"])
def test_symbol_in_any_spelling_is_the_same(text: str) -> None:
    assert parse_symbol(text) == Instrument("BTCUSDT", "BTC", "USDT")


def test_written_split_wins_over_the_known_quote_assets() -> None:
    assert parse_symbol("FOO/BAR") == Instrument("FOOBAR", "FOO", "BAR")
    assert parse_symbol("BNBB/USD") == Instrument("BNBBUSD", "BNBB", "USD")


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "B", "BTC USDT", "BTC@USDT", "BTCUSDT@trade", "BTCUSDT\n?x", "BTC/", "/USDT"),
        *("BTC/USDT/EUR", "BTCUSDT_PERPETUAL", "BTCUSDT_2509", "_PERP", "ÄTHUSDT", "₿USDT"),
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
        "umlaut",
        "currency-sign",
        "too-long",
    ],
)
def test_text_that_is_no_symbol_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="is not a symbol"):
        parse_symbol(text)


@pytest.mark.parametrize("text", ["FOOBAR", "BTCXYZ", "USDT", "XYZ_PERP"])
def test_unknown_quote_asset_asks_for_the_split(text: str) -> None:
    with pytest.raises(UsageError, match="quote asset") as caught:
        parse_symbol(text)
    assert "FOO/BAR" in str(caught.value.hint)


def test_complaint_about_a_huge_text_is_short() -> None:
    with pytest.raises(UsageError) as caught:
        parse_symbol("x" * 1_000_000)
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
