"""The instruments of the synthetic market: their prices, ticks and lots."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from k2cli.ingestion.symbols import FUTURES, Market

# The price of one unit in dollars; the first line has the quote currencies.
_QUOTES: Final = (
    "USDT=1 USDC=1 FDUSD=1 BUSD=1 TUSD=1 USD=1 EUR=1.08 TRY=0.03 BTC=67000 ETH=3400 BNB=580"
)
_BASES: Final = (
    "SOL=165 XRP=0.58 ADA=0.44 DOGE=0.12 AVAX=27 LINK=14 DOT=6.1 LTC=72 BCH=390 TRX=0.13 "
    "SHIB=0.000018 UNI=7.9 NEAR=5.4 ATOM=6.6 ETC=22 XLM=0.1 FIL=4.3 APT=7.1 ARB=0.7 OP=1.8"
)


def _worth(text: str) -> Mapping[str, Decimal]:
    pairs = (pair.split("=") for pair in text.split())
    return {name: Decimal(value) for name, value in pairs}


_QUOTE_USD: Final = _worth(_QUOTES)
_USD: Final = _worth(f"{_QUOTES} {_BASES}")


# The listing of a market that trades any symbol.
PAIRS: Final[Mapping[Market, Sequence[str]]] = {
    Market.SPOT: [f"{base}/USDT" for base in _USD if base not in ("USDT", "USD")],
    Market.US: [f"{base}/USD" for base in _USD if base not in ("USD", "EUR", "TRY")],
    Market.USDM: [f"{base}/USDT" for base in _USD if base not in _QUOTE_USD] + ["BTC/USDT"],
    Market.COINM: ["BTCUSD_PERP", "ETHUSD_PERP", "BNBUSD_PERP", "SOLUSD_PERP"],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Instrument:
    """How one symbol is priced and formatted, in integers."""

    symbol: str
    base_ticks: int  # the center of the walk
    move_ticks: int  # one step of the walk
    tick: int  # in units of the last printed decimal
    price_decimals: int
    step: int  # of the quantity, in units of its last printed decimal
    quantity_decimals: int


def instrument(symbol: str, kind: Market) -> Instrument:
    """Price a symbol: well-known ones realistically, others by the checksum of the name."""
    usd, quote_usd = _base_and_quote_usd(symbol.partition("_")[0])
    price, magnitude = usd / quote_usd, usd.adjusted()  # magnitude is 4 for 67000
    decimals = min(max(4 - price.adjusted(), 2), 8)
    quantity_decimals = min(max(magnitude + 1, 0), 5)
    lot = 10 ** max(-magnitude - 1, 0)
    if kind in FUTURES:
        quantity_decimals = 0 if kind is Market.COINM else min(quantity_decimals, 3)
    ticks = max(int(price.scaleb(decimals)), 1000)
    printed = (decimals, quantity_decimals) if kind in FUTURES else (8, 8)
    return Instrument(
        symbol=symbol,
        base_ticks=ticks,
        move_ticks=max(ticks // 100_000, 1),
        tick=10 ** (printed[0] - decimals),
        price_decimals=printed[0],
        step=lot * 10 ** (printed[1] - quantity_decimals),
        quantity_decimals=printed[1],
    )


def _base_and_quote_usd(pair: str) -> tuple[Decimal, Decimal]:
    quote = next((name for name in _QUOTE_USD if pair.endswith(name) and pair != name), "USDT")
    base = pair.removesuffix(quote)
    checksum = zlib.crc32(base.encode())
    made_up = Decimal(1 + checksum % 900).scaleb(checksum // 900 % 4 - 2)
    return _USD.get(base, made_up), _QUOTE_USD[quote]
