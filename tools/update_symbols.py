"""Update the list of symbols that k2 ships from answers of the exchange to `exchangeInfo`.

    python tools/update_symbols.py spot=spot.json usdm=https://fapi.binance.com/fapi/v1/exchangeInfo

Every argument is MARKET=FILE or MARKET=URL; MARKET@DATE=FILE for an answer of an earlier date.
Pairs that the list has already stay in it, because files of delisted symbols are loaded too; of
two splits of a name the newer one wins. The same input always gives the same list.
"""

import sys
import urllib.request
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Final

from k2cli.ingestion.binance.exchangeinfo import parse_exchange_info
from k2cli.ingestion.listings import Pair, format_listing, merge_pairs, parse_listing
from k2cli.ingestion.symbols import Market

LIST: Final = Path(__file__).parent.parent / "k2cli" / "ingestion" / "symbols.tsv"
_TIMEOUT_S: Final = 60


def update(path: Path, words: Sequence[str], *, today: date) -> dict[str, int]:
    """Merge answers into the list at `path`; return how many pairs each market has then.

    Raises:
        ValueError: an argument is not MARKET=SOURCE, or a source is not an answer.
        OSError: a source or the list cannot be read.
    """
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    markets: dict[str, dict[str, Pair]] = {
        market.value: parse_listing(text, market) for market in Market
    }
    for word in words:
        name, equals, source = word.partition("=")
        market, _, when = name.partition("@")
        if not equals or market not in markets:
            raise ValueError(f"{word!r} is not MARKET=SOURCE, with one of {', '.join(Market)}")
        merge_pairs(markets[market], parse_exchange_info(_read(source), when or today.isoformat()))
    path.write_text(format_listing(markets), encoding="utf-8")
    return {market: len(pairs) for market, pairs in markets.items()}


def _read(source: str) -> bytes:
    if source.startswith("https://"):
        with urllib.request.urlopen(source, timeout=_TIMEOUT_S) as answer:
            content: bytes = answer.read()
            return content
    return Path(source).read_bytes()


def main() -> None:
    """Update the list in place."""
    if len(sys.argv) == 1:
        sys.exit(__doc__)
    for market, count in update(LIST, sys.argv[1:], today=datetime.now(UTC).date()).items():
        sys.stdout.write(f"{market}: {count} pairs\n")


if __name__ == "__main__":
    main()
