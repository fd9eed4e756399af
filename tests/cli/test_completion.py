"""Completion as the shells ask for it: the scripts' own protocol, in processes of their own."""

import shlex
import subprocess
from pathlib import Path

import pytest

from k2cli.completion.words import remember
from support.running import K2_COMMAND, Result, Run

HEAVY = {"typer", "rich", "msgspec", "pyarrow", "polars", "duckdb", "pyiceberg", "confluent_kafka"}


@pytest.fixture(autouse=True)
def known(home: Path) -> None:
    """Remember words in the home."""
    home.mkdir()
    remember(home, None, {"symbols": ["BTCUSDT", "币安人生USDT"], "exchanges": ["BINANCE"]})


def bash(run: Run, *words: str, **environment: str) -> list[str]:
    """Ask as bash does: the last word is the unfinished one."""
    env = {
        "_K2_COMPLETE": "complete_bash",
        "COMP_WORDS": "\n".join(words),
        "COMP_CWORD": str(len(words) - 1),
        **environment,
    }
    return checked(run([], env=env)).splitlines()


def typed(run: Run, shell: str, line: str, **environment: str) -> Result:
    """Ask as zsh and fish do, with the line up to the cursor."""
    return run(
        [], env={"_K2_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": line, **environment}
    )


def checked(result: Result) -> str:
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("query", "trades", "--symbol", ""), ["BTCUSDT", "币安人生USDT"]),
        (("query", "trades", "--symbol", "=", "B"), ["BTCUSDT"]),  # bash splits at =
        (("query", "trades", "--symbol", "="), ["BTCUSDT", "币安人生USDT"]),
        (
            ("stream", "binance", "--url", "ws", ":", "//127.0.0.1", ":", "9", "--mark"),
            ["--market"],
        ),
        (("query", "sql", '"select 1', ""), []),
    ],
)
def test_bash(run: Run, words: tuple[str, ...], expected: list[str]) -> None:
    assert bash(run, "k2", *words) == expected


def test_zsh(run: Run) -> None:
    found = checked(typed(run, "zsh", "k2 query trades --symbol=B"))
    assert found == """_arguments '*: :(("--symbol=BTCUSDT"))'\n"""
    found = checked(typed(run, "zsh", "k2 query "))
    assert found.startswith("""_arguments '*: :(("trades":"Print trades by time.\"""")
    assert checked(typed(run, "zsh", "k2 load csv ")) == "_files\n"


def test_fish(run: Run) -> None:
    get, ask = ({"_TYPER_COMPLETE_FISH_ACTION": f"{word}-args"} for word in ("get", "is"))
    assert "trades\tPrint trades by time.\n" in checked(typed(run, "fish", "k2 query ", **get))
    assert typed(run, "fish", "k2 query ", **ask).exit_code == 0
    files = typed(run, "fish", "k2 load csv ", **ask)
    assert (files.exit_code, files.stdout, files.stderr) == (1, "", "")


def test_completing_imports_the_standard_library_alone(run: Run) -> None:
    env = {
        "_K2_COMPLETE": "complete_bash",
        "COMP_WORDS": "k2 query trades --symbol ",
        "COMP_CWORD": "4",
    }
    result = run([], env={**env, "PYTHONVERBOSE": "", "PYTHONPROFILEIMPORTTIME": "1"})
    assert result.stdout.split() == ["BTCUSDT", "币安人生USDT"]
    loaded = {
        line.rpartition("|")[2].strip().partition(".")[0] for line in result.stderr.splitlines()
    }
    assert "k2cli" in loaded
    assert loaded & HEAVY == set()


def test_nothing_is_written_to_the_terminal_when_completion_fails(run: Run) -> None:
    env = {"_K2_COMPLETE": "complete_bash", "COMP_WORDS": "k2 ", "COMP_CWORD": "no number"}
    result = run([], env=env)
    assert (result.stdout, result.stderr) == ("", "")


def test_the_script_for_bash_completes_in_bash(
    run: Run, k2_env: dict[str, str], tmp_path: Path
) -> None:
    script = run(
        ["--show-completion", "bash"], env={"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    )
    program = tmp_path / "k2"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(K2_COMMAND)} "$@"\n')
    program.chmod(0o755)
    (tmp_path / "script.sh").write_text(
        script.stdout + "\nCOMP_WORDS=(k2 query trades --symbol B); COMP_CWORD=4\n"
        f'_k2_completion {program}; echo "${{COMPREPLY[@]}}"\n'
    )
    done = subprocess.run(
        ["bash", str(tmp_path / "script.sh")],
        env=k2_env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout.strip(), done.stderr) == ("BTCUSDT", "")


def test_commands_remember_what_they_come_to_know(run: Run, tmp_path: Path) -> None:
    csv = tmp_path / "rows.csv"
    csv.write_text("timestamp,price,size,symbol\n2024-08-08T10:00:00Z,1,2,SOLUSDT\n")
    options = ["-l", "generic-trades", "--exchange", "KRAKEN", "--asset-class", "crypto"]
    assert run(["load", "csv", str(csv), *options]).exit_code == 0
    assert bash(run, "k2", "query", "trades", "-s", "S") == ["SOLUSDT"]
    assert run(["query", "symbols"]).exit_code == 0  # all of them, so that others are forgotten
    assert bash(run, "k2", "query", "trades", "-s", "") == ["SOLUSDT"]
    assert bash(run, "k2", "query", "trades", "--exchange", "") == ["KRAKEN"]
