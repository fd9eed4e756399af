"""Shell completion: what follows on a command line, and what is remembered for it."""

import json
import os
import stat
from pathlib import Path

import pytest

from k2cli.completion.answers import candidates, source_names
from k2cli.completion.shell import complete
from k2cli.completion.words import read_words, remember
from support import grammar

WORDS = {
    "symbols": ["BTCUSDT", "ETHUSDT", "币安人生USDT"],
    "exchanges": ["BINANCE", "X"],
    "topics": ["market.crypto.trades", "market.crypto.quotes"],
    "subjects": ["market.crypto.trades-value"],
}


def after(line: str, **environment: str) -> list[str]:
    """Complete a line; the unfinished word is what stands behind the last space."""
    *args, incomplete = line.split(" ")
    return [each.word for each in candidates(args, incomplete, environment)]


@pytest.fixture
def known(tmp_path: Path) -> str:
    """A home that remembers words, other ones for profile prod, and has a config file."""
    remember(tmp_path, None, WORDS)
    remember(tmp_path, "prod", {"symbols": ["SOLUSDT"]})
    (tmp_path / "k2.toml").write_text("[profile.prod.kafka]\n[profile.test.kafka]\n[table]\n")
    return str(tmp_path)


def test_grammar_is_that_of_the_commands() -> None:
    assert grammar.PATH.read_text(encoding="utf-8") == grammar.text(), "run: nox -s docs"


def test_grammar_refers_to_sources_that_exist_and_all_are_used() -> None:
    nodes = grammar.grammar().values()
    params = [each for node in nodes for each in (*node["options"], *node["arguments"])]
    named = {each["values"] for each in params if isinstance(each["values"], str)}
    assert named == set(source_names())


def test_every_option_value_of_every_command_completes_without_a_failure(known: str) -> None:
    for path, node in json.loads(grammar.PATH.read_text(encoding="utf-8")).items():
        for option in node["options"]:
            args = [*path.split(), option["names"][0]]
            candidates(args, "", {"K2_HOME": known})
            candidates(path.split(), f"{option['names'][0]}=", {"K2_HOME": known})
        candidates(path.split(), "", {"K2_HOME": known})


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("que", ["query"]),
        ("query trades --symbol B", ["BTCUSDT"]),
        ("query trades --symbol btc", ["BTCUSDT"]),
        ("query trades -s B", ["BTCUSDT"]),
        ("query trades --symbol=B", ["--symbol=BTCUSDT"]),
        ("query trades --symbol ETHUSDT,币", ["ETHUSDT,币安人生USDT"]),
        ("query trades --symbol BTCUSDT,ETHUSDT,", ["BTCUSDT,ETHUSDT,币安人生USDT"]),
        ("query quotes --exchange ", ["BINANCE", "X"]),
        ("query trades --columns timestamp,pri", ["timestamp,price"]),
        ("query quotes -c bid", ["bid_price", "bid_quantity"]),
        ("query trades --order ", ["asc", "desc"]),
        ("query trades --symbol BTCUSDT --ord", ["--order"]),
        ("query trades --limit ", []),
        ("load csv x.csv --columns ", []),  # those of the file
        ("load csv x.csv --layout asx", ["asx-quotes", "asx-trades"]),
        ("export trades -l bitf", ["bitfinex-trades"]),
        ("load layouts ka", ["kaiko-trades"]),
        ("table describe ", ["trades", "quotes"]),
        ("table describe trades ", []),
        ("--profile ", ["prod", "test"]),
        ("--profile prod query trades --symbol ", ["SOLUSDT"]),
        ("--profile=prod query trades --symbol ", ["SOLUSDT"]),
        ("schema check trade_v2 trade_v", ["trade_v1", "trade_v2"]),
        ("schema show market", ["market.crypto.trades-value"]),
        ("schema versions ", ["market.crypto.trades-value"]),
        ("consume --topic ", ["market.crypto.quotes", "market.crypto.trades"]),
        ("topic describe market.crypto.t", ["market.crypto.trades"]),
        ("topic create ", []),
        ("stream binance --channels trade,", ["trade,bookTicker"]),
        ("stream binance --market co", ["coinm"]),
        ("no such command ", []),
        ("query trades --no-such-option ", []),
    ],
)
def test_completion(known: str, line: str, expected: list[str]) -> None:
    assert sorted(after(line, K2_HOME=known)) == sorted(expected)


def test_home_and_profile_come_from_the_line_before_the_environment(known: str) -> None:
    elsewhere = {"K2_HOME": "/no/such/home"}
    assert after(f"query trades --home {known} --symbol B", **elsewhere) == ["BTCUSDT"]
    assert after(f"query trades --home={known} --symbol B", **elsewhere) == ["BTCUSDT"]
    assert after("query trades --symbol B", **elsewhere) == []
    assert after("query trades -s ", K2_HOME=known, K2_PROFILE="prod") == ["SOLUSDT"]
    config = str(Path(known, "k2.toml"))
    assert after("--profile p", K2_CONFIG=config, **elsewhere) == ["prod"]


@pytest.mark.parametrize("text", ["profile = 3", "[", "\0"])
def test_broken_config_file_completes_to_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "k2.toml").write_text(text)
    assert after("--profile ", K2_HOME=str(tmp_path)) == []


# --- what is remembered


def test_words_are_added_or_replaced(tmp_path: Path) -> None:
    remember(tmp_path, None, {"symbols": ["B"], "topics": ["t"]})
    remember(tmp_path, None, {"symbols": ["A"]})
    assert read_words(tmp_path, None) == {"symbols": ["A", "B"], "topics": ["t"]}
    remember(tmp_path, None, {"symbols": ["C"]}, is_complete=True)
    assert read_words(tmp_path, None) == {"symbols": ["C"], "topics": ["t"]}


@pytest.mark.parametrize(
    "word", ["a b", "$(id)", "`id`", "a'b", 'a"b', "a;b", "a\tb", "a\nb", "*", ""]
)
def test_words_that_a_shell_might_read_are_never_offered(tmp_path: Path, word: str) -> None:
    remember(tmp_path, None, {"symbols": [word, "OK"]})
    assert read_words(tmp_path, None) == {"symbols": ["OK"]}
    (tmp_path / "completion" / "default.txt").write_text(f"symbols\t{word}\n")
    assert word not in read_words(tmp_path, None).get("symbols", [])


def test_a_home_that_does_not_exist_or_cannot_be_written_is_left_alone(tmp_path: Path) -> None:
    remember(tmp_path / "no", None, {"symbols": ["A"]})
    assert not (tmp_path / "no").exists()
    (tmp_path / "completion").write_text("a file where the folder should be")
    remember(tmp_path, None, {"symbols": ["A"]})
    assert read_words(tmp_path, None) == {}


def test_an_unchanged_file_is_not_written_again(tmp_path: Path) -> None:
    remember(tmp_path, None, {"symbols": ["A"]})
    file = tmp_path / "completion" / "default.txt"
    before = file.stat()
    assert stat.S_ISREG(before.st_mode)
    remember(tmp_path, None, {"symbols": ["A"]})
    assert file.stat().st_ino == before.st_ino
    assert os.listdir(file.parent) == ["default.txt"]  # noqa: PTH208


def test_typer_answers_other_shells() -> None:
    assert not complete("complete_powershell")
    assert not complete("source_bash")
