"""Every event is defined once; whatever handles events follows that definition."""

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

from k2cli.commands import metrics
from k2cli.commands.metrics import RunMetrics
from k2cli.commands.terminal import lag, screen
from k2cli.commands.terminal.events import LogFormat, RunLog
from k2cli.events import EVENTS, Level, Observer, level_of
from k2cli.ingestion.binance import exchangeinfo
from support.paths import REPOSITORY

MYPY_CASES = {
    'observe("stale", silent_s=1.5)': None,
    'observe("gap", topic="t", partition=1, first=1, last=2, missing=2)': None,
    'observe("kafka_unavailable", reason="why")': None,
    'observe("summary", rows=1)': None,
    'observe("stail", silent_s=1.5)': "No overload variant",
    'observe("stale", silence_s=1.5)': "No overload variant",
    'observe("stale", silent_s="long")': "No overload variant",
    'observe("stale")': "No overload variant",
    'observe("gap", topic="t", symbol="s", first=1, last=2, missing=2)': "No overload variant",
}


def test_events_have_a_level_fields_and_a_meaning() -> None:
    assert len(EVENTS) > 40
    for name, event in EVENTS.items():
        assert event.name == name
        assert event.level in Level
        assert len(event.forms) == len(event.meanings) >= 1
        assert all(meaning.endswith(".") for meaning in event.meanings)
    assert {event.level for event in EVENTS.values()} == set(Level)
    assert EVENTS["gap"].forms == (
        ("table", "symbol", "first", "last", "missing"),
        ("topic", "partition", "first", "last", "missing"),
    )


def test_levels() -> None:
    found = [level_of(name) for name in ("error", "reject", "commit", "symbols_refreshed")]
    assert found == [Level.ERROR, Level.WARNING, Level.INFO, Level.DEBUG]
    with pytest.raises(KeyError):
        level_of("nosuch")


def test_misspelt_events_are_type_errors(tmp_path: Path) -> None:
    api = pytest.importorskip("mypy.api", reason="mypy is installed for lint only")
    path = tmp_path / "emit.py"
    lines = ["from k2cli.events import Observer", "def emit(observe: Observer) -> None:"]
    path.write_text("\n".join([*lines, *(f"    {call}" for call in MYPY_CASES), ""]))
    config = tmp_path / "mypy.ini"
    config.write_text(f"[mypy]\nmypy_path = {REPOSITORY}\n")
    said, _, _ = api.run(["--strict", "--config-file", str(config), f"{path}"])
    errors = {}
    for line in said.splitlines():
        if ": error: " in line:
            place, _, text = line.partition(": error: ")
            errors[int(place.rpartition(":")[2]) - len(lines) - 1] = text
    for number, (call, expected) in enumerate(MYPY_CASES.items()):
        assert expected in errors[number] if expected else number not in errors, (call, said)


def compared_names(module: object) -> Iterator[str]:
    """The texts that a module compares a variable `event` with."""
    for node in ast.walk(ast.parse(inspect.getsource(module))):  # type: ignore[arg-type]
        if isinstance(node, ast.Compare) and ast.unparse(node.left) == "event":
            for each in node.comparators:
                yield from (str(c.value) for c in ast.walk(each) if isinstance(c, ast.Constant))


@pytest.mark.parametrize("module", [lag, metrics, screen, exchangeinfo], ids=lambda m: m.__name__)
def test_names_that_are_looked_for_are_events(module: object) -> None:
    names = set(compared_names(module))
    assert names
    assert names <= set(EVENTS)
    assert set(screen._SERVERS) <= set(EVENTS)


def test_metrics_begin_with_every_warning() -> None:
    run = RunMetrics(RunLog(run="r").on_event)
    (events,) = [each for each in run.registry.collect() if each.name == "k2_events"]
    warnings = {name for name, event in EVENTS.items() if event.level is Level.WARNING}
    assert {sample.labels["event"] for sample in events.samples} == warnings


@pytest.mark.parametrize("event", EVENTS)
def test_log_lines_have_the_level_of_the_event(
    event: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for form in EVENTS[event].forms:
        log = RunLog(LogFormat.JSON, Level.DEBUG, run="r")
        log.on_event(event, **dict.fromkeys(form, 1))
        line = capsys.readouterr().err
        assert f'"level": "{EVENTS[event].level}", "event": "{event}"' in line
        assert all(f'"{field}": 1' in line for field in form)


def test_an_observer_may_be_a_function() -> None:
    seen: list[object] = []
    observe: Observer = lambda event, /, **fields: seen.append((event, fields))  # noqa: E731
    observe("metrics", url="http://127.0.0.1:1")
    assert seen == [("metrics", {"url": "http://127.0.0.1:1"})]
