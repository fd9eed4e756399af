"""What `--symbols` selects: named symbols, rules, files."""

from collections.abc import Callable, Sequence
from functools import partial
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest

from k2cli.errors import BadData, ConfigError, K2Error, NotFound, UsageError
from k2cli.ingestion import selection as module
from k2cli.ingestion.selection import Selection, parse_selection, read_words
from k2cli.ingestion.symbols import Instrument, Market, parse_symbol

PARSE = partial(parse_symbol, market=Market.SPOT)


def instrument(pair: str) -> Instrument:
    base, _, quote = pair.partition("/")
    return Instrument(base + quote, base, quote)


TRADING = [
    instrument(pair)
    for pair in ("BTC/USDT", "ETH/USDT", "ETH/BTC", "BTC/EUR", "BTCDOM/EUR", "币安人生/USDT")
]
PERPETUAL = Instrument("BTCUSD_PERP", "BTC", "USD")


def selected(*values: str, trading: Sequence[Instrument] = TRADING) -> list[str]:
    selection = parse_selection(read_words(values), PARSE)
    return [each.symbol for each in selection.resolve(trading)]


@pytest.mark.parametrize(
    ("values", "symbols"),
    [
        (["BTCUSDT"], ["BTCUSDT"]),
        (["BTC/USDT", "btcusdt", "btc-usdt"], ["BTCUSDT"]),
        (["all"], [each.symbol for each in TRADING]),
        (["ALL:usdt"], ["BTCUSDT", "ETHUSDT", "币安人生USDT"]),
        (["all:BTC"], ["ETHBTC"]),
        (["*USDT"], ["BTCUSDT", "ETHUSDT", "币安人生USDT"]),
        (["btc*"], ["BTCUSDT", "BTCEUR", "BTCDOMEUR"]),
        (["btc/*"], ["BTCUSDT", "BTCEUR"]),
        (["*/BTC"], ["ETHBTC"]),
        (["ETH????"], ["ETHUSDT"]),
        (["[b-c]tceur"], ["BTCEUR"]),
        (["币*"], ["币安人生USDT"]),
        (["ETHBTC", "*BTC,all:EUR", "btceur"], ["ETHBTC", "BTCEUR", "BTCDOMEUR"]),
        (["XRPUSDT", "all:BTC"], ["XRPUSDT", "ETHBTC"]),  # a named symbol need not trade
    ],
)
def test_words_select_symbols_once(values: list[str], symbols: list[str]) -> None:
    assert selected(*values) == symbols


def test_futures_match_with_their_suffix() -> None:
    assert selected("*_PERP", "all:USD", trading=[PERPETUAL]) == ["BTCUSD_PERP"]
    assert selected("btcusd*", trading=[*TRADING, PERPETUAL]) == ["BTCUSD_PERP", "BTCUSDT"][::-1]


def test_pattern_that_matches_5000_symbols() -> None:
    trading = [instrument(f"币{number}/USDT") for number in range(5000)]
    assert len(selected("*usdt", "all", "all:USDT", "币*", trading=trading)) == 5000


@pytest.mark.parametrize("pattern", ["*" * 99, "*A" * 49 + "*", "[" * 50 + "*"])
def test_pattern_takes_no_time_to_compare(pattern: str) -> None:
    trading = [instrument("A" * 30 + "/USDT")] * 1000
    selected(pattern, trading=trading)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("all:", "selects no symbols"),
        ("foo:USDT", "selects no symbols"),
        ("*" * 101, "selects no symbols"),
        ("ALL:" + "X" * 10_000, "selects no symbols"),
        ("BTC USDT", "is not a symbol"),
        ("@", "names no file"),
    ],
)
def test_malformed_word_is_a_usage_error(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        selected(text)
    assert len(str(caught.value)) < 200
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("all:USTD", "did you mean all:USDT?"),
        ("*USTD", "did you mean *USDT?"),
        ("BTCX*", "did you mean BTC*?"),
        ("all:NOSUCH", "for example BTCUSDT, all:USDT"),
        ("[*", "for example BTCUSDT, all:USDT"),
    ],
)
def test_rule_without_a_match_is_an_error_with_a_suggestion(text: str, hint: str) -> None:
    selection = parse_selection(read_words(["BTCUSDT", text]), PARSE)
    with pytest.raises(NotFound, match="matches none of the 6 symbols that trade") as caught:
        selection.check(TRADING)
    assert text in str(caught.value)
    assert caught.value.hint == hint


def test_rules_with_matches_are_right() -> None:
    parse_selection(read_words(["XRPUSDT", "all:EUR", "*BTC", "all"]), PARSE).check(TRADING)
    Selection(named=[]).check([])


# --- files


@pytest.mark.parametrize(
    "content",
    [
        b"BTCUSDT\nall:BTC\n",
        b"\xef\xbb\xbfBTCUSDT\r\nall:BTC\r\n",
        b"# pairs\n\n  BTC/USDT , all:BTC # both\n,\n",
        b"all:BTC,BTCUSDT",
        "all:BTC\n  # 币\nbtcusdt\n".encode(),
    ],
    ids=["lines", "bom-crlf", "comments", "commas", "non-ascii"],
)
def test_file_has_words(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "symbols.txt"
    path.write_bytes(content)
    assert sorted(selected(f"@{path}")) == ["BTCUSDT", "ETHBTC"]


def test_file_and_words_are_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("BTCUSDT")
    (tmp_path / "b").write_text("ETHBTC\nBTCUSDT")
    monkeypatch.chdir(tmp_path)
    assert selected("@a,ETHUSDT", "@b") == ["BTCUSDT", "ETHUSDT", "ETHBTC"]


def test_stdin_has_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO(b"BTCUSDT\nall:BTC")))
    assert selected("@-") == ["BTCUSDT", "ETHBTC"]


def content(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda _: None, NotFound, "symbols.txt does not exist"),
        (Path.mkdir, UsageError, "symbols.txt is a directory"),
        (content(b""), BadData, "symbols.txt lists no symbols"),
        (content(b"\xef\xbb\xbf\r\n # nothing\r\n"), BadData, "symbols.txt lists no symbols"),
        (content(b"BTCUSDT\n\xff\xfeB"), BadData, "is not UTF-8: .* at byte 8"),
        (content("BTCUSDT".encode("utf-16")), BadData, "is not UTF-8"),
        (content(b"BTCUSDT\n@other.txt\n"), BadData, "line 2: a file of symbols cannot name"),
        (content(b"BTCUSDT\n\nall:\n"), BadData, "line 3: 'all:' selects no symbols"),
        (content(b"ETHBTC, BTC USDT"), BadData, "line 1: 'BTC USDT' is not a symbol"),
        (content(b"\0" * 40), BadData, "line 1: .* is not a symbol"),
        (content(b"BTCUSDT\n" * 200), BadData, "is larger than 0 MB"),
    ],
    ids=[
        "missing", "directory", "empty", "comment", "not-utf8", "utf16", "nested", "rule", "symbol",
        "zeros", "large",
    ],
)  # fmt: skip
def test_bad_file_is_an_error_that_names_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Path], object],
    error: type[K2Error],
    words: str,
) -> None:
    monkeypatch.setattr(module, "_MAX_BYTES", 1000)
    path = tmp_path / "symbols.txt"
    make(path)
    with pytest.raises(error, match=words):
        selected(f"@{path}")


def test_unreadable_file_is_a_wrong_setting() -> None:
    with pytest.raises(ConfigError, match=r"/proc/self/mem cannot be read"):
        selected("@/proc/self/mem")


def test_endless_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_BYTES", 1000)
    with pytest.raises(BadData, match="is larger than"):
        selected("@/dev/zero")
