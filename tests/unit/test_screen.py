"""What the live views show: the state of a run, honest rates, and only what fits."""

import io

import pytest
from rich.console import Console

from k2cli.commands.terminal.live import LiveView
from k2cli.commands.terminal.screen import Rate, RunState, pack
from k2cli.flow import Batch, Totals
from k2cli.ingestion.breaker import ServerHealth
from k2cli.records import TRADES
from support.builders import trades_batch


def test_rate_is_over_the_time_that_has_passed() -> None:
    rate = Rate()
    assert rate.per_second(0.0) == 0
    rate.add(100, 10.0)
    assert rate.per_second(10.001) == 100  # no division by a thousandth of a second
    rate.add(100, 11.0)
    assert rate.per_second(12.0) == 100
    assert rate.per_second(14.0) == 50


def test_rate_follows_the_last_seconds_and_ends_at_0() -> None:
    rate = Rate()
    for second in range(20):
        rate.add(10 if second < 10 else 50, float(second))
    assert rate.per_second(19.5) == 50
    assert rate.per_second(30.0) == 0


def test_rate_of_a_late_symbol_is_over_the_whole_window() -> None:
    rate = Rate()
    rate.add(10, 100.0)
    assert rate.per_second(100.5, since=1.0) == 2


def state() -> tuple[RunState, Totals]:
    totals = Totals()
    return RunState("connecting", "connected", lambda _: totals.rows), totals


def test_state_counts_down_to_the_next_attempt() -> None:
    run, _ = state()
    assert run.parts(0.0) == ["connecting"]
    run.on_event("disconnected", {"retry_in_s": 2.5}, 0.0)
    assert run.parts(0.2) == ["connecting in 3 s"]
    run.on_event("connected", {"streams": 1}, 2.6)
    assert (run.parts(3.0), run.is_well) == (["connected"], True)
    run.on_event("disconnected", {"retry_in_s": 3.0}, 10.0)
    assert (run.parts(10.0), run.is_well) == (["reconnecting in 3 s"], False)
    assert run.parts(11.5) == ["reconnecting in 2 s"]
    assert run.parts(13.1) == ["reconnecting now"]
    run.on_event("disconnected", {"retry_in_s": 6}, 13.2)  # that attempt failed
    assert run.parts(13.2) == ["reconnecting in 6 s"]
    run.on_event("attempts_limited", {"retry_in_s": 60}, 19.3)
    assert run.parts(19.3) == ["reconnecting in 60 s"]
    run.on_event("connected", {"streams": 1}, 80.0)
    assert run.parts(80.0) == ["connected"]


def test_state_counts_the_connections_that_are_lost() -> None:
    run, _ = state()
    run.on_event("connected", {}, 0.0)
    run.on_event("connected", {}, 0.0)
    run.on_event("disconnected", {"retry_in_s": 1}, 5.0)
    run.on_event("disconnected", {"retry_in_s": 4}, 5.0)
    assert run.parts(5.0) == ["reconnecting 2 connections in 1 s"]
    run.on_event("connected", {}, 6.1)
    assert run.parts(6.1) == ["reconnecting in 3 s"]


@pytest.mark.parametrize("is_new", [True, False])
def test_state_waits_visibly_for_the_catalog(is_new: bool) -> None:
    run, totals = state()
    run.on_event("connected", {}, 0.0)
    away = {"reason": "x", "rows": 1200, "retry_in_s": 2.0}
    run.on_event("catalog_unavailable", away, 5.0)
    assert run.parts(5.5) == [
        *("connected", "catalog unavailable", "1,200 rows waiting", "next try in 2 s")
    ]
    assert run.parts(7.5)[-1] == "trying now"
    run.is_stopping = lambda: True
    assert run.parts(7.5)[0] == "stopping, committing"
    run.is_stopping = bool
    if is_new:
        run.on_event("commit", {"rows": 1200}, 8.0)
    else:  # a commit is only reported where there was something new
        totals.rows += 1
    assert run.parts(8.0) == ["connected"]


def test_parts_are_packed_into_lines_that_fit() -> None:
    assert pack(["aaa", "bbb", "ccc"], 8) == ["aaa  bbb", "ccc"]
    assert pack(["0123456789"], 5) == ["01…89"]


def drawn(view: LiveView, width: int, height: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height)
    console.print(view.draw(width, height, view._began + 2))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def view_of(counts: dict[str, int]) -> LiveView:
    view = LiveView(title="BINANCE trade")
    view.on_event("connected", url="ws://x", streams=len(counts))
    view.watch(Totals(messages=sum(counts.values())))
    for symbol, count in counts.items():
        view.on_batch(Batch(rows=[(TRADES, trades_batch(count, symbol=symbol))], messages=count))
    return view


def test_busiest_symbols_come_first_and_the_rest_is_counted() -> None:
    view = view_of({"A": 1, "B": 50, "C": 200, **{f"S{n}": 2 for n in range(40)}})
    lines = drawn(view, 80, 12)
    assert len(lines) <= 11
    rows = lines[lines.index(next(line for line in lines if line.startswith("symbol"))) + 1 :]
    assert [row.split()[0] for row in rows[:2]] == ["C", "B"]
    (more,) = (line for line in lines if "more" in line)
    shown = rows.index(more)
    assert more == f"and {43 - shown} more"


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    from rich.cells import cell_len  # noqa: PLC0415

    view = view_of({"币安人生USDT": 3, "1000000MOGUSDT_260925": 2})
    for fields in ({"retry_in_s": 3.0}, {"rows": 123456789, "retry_in_s": 5.0}):
        view.on_event(
            "catalog_unavailable" if "rows" in fields else "disconnected", reason="x", **fields
        )
    lines = drawn(view, width, 24)
    assert max(map(cell_len, lines)) <= width
    text = "\n".join(lines)
    assert "reconnecting in" in text or width < 40
    assert "rows/s" in text
    if width >= 40:
        assert "币安人生USDT" in text


def test_servers_are_shown_with_their_health_and_without_passwords() -> None:
    view = view_of({"A": 1})
    health = [
        ServerHealth(url="ws://me:secret@one", breaker="open", message_age_s=None),
        ServerHealth(url="ws://two", breaker="closed", message_age_s=3.2),
        ServerHealth(url="ws://three", breaker="closed", message_age_s=None),
    ]
    view.watch_servers(lambda: health)
    text = "\n".join(drawn(view, 200, 24))
    assert "one: breaker open" in text
    assert "secret" not in text
    assert "ws://two: last message 3 s ago" in text
    assert "ws://three" not in text
