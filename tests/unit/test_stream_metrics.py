"""The metrics of a stream, from its batches and events."""

import time
from dataclasses import replace
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest

from k2cli.commands.stream_metrics import StreamMetrics
from k2cli.flow import Batch, Totals
from k2cli.records import TRADES
from k2cli.rejects import Cause, Fault, Reject
from support.builders import batch_of, trade_row


def samples(metrics: StreamMetrics) -> dict[str, float]:
    """What Prometheus reads, by name with labels."""
    registry = CollectorRegistry()
    registry.register(metrics)
    lines = generate_latest(registry).decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def batch(*ages_s: float, symbol: str = "BTCUSDT", **fields: Any) -> Batch:
    """A batch of trades that the exchange made this long ago."""
    now_us = time.time_ns() // 1000
    rows = [
        trade_row(symbol=symbol, source_sequence=n, timestamp=now_us - int(age_s * 1e6))
        for n, age_s in enumerate(ages_s)
    ]
    return Batch(rows=[(TRADES, batch_of(TRADES, rows))], messages=len(rows), **fields)


def test_rows_are_counted_by_symbol() -> None:
    metrics = StreamMetrics(Totals())
    metrics.on_batch(batch(1, 2))
    metrics.on_batch(batch(1, symbol="ETHUSDT"))
    found = samples(metrics)
    assert found['k2_received_total{kind="trades",symbol="BTCUSDT"}'] == 2
    assert found['k2_received_total{kind="trades",symbol="ETHUSDT"}'] == 1
    assert time.time() - found["k2_last_message_timestamp_seconds"] < 60


def test_delays_are_those_of_committed_rows() -> None:
    totals = Totals()
    metrics = StreamMetrics(totals)
    metrics.on_batch(batch(20, 200, 100_000))
    assert samples(metrics)["k2_exchange_to_commit_seconds_count"] == 0
    totals.rows = 3
    metrics.on_batch(batch(-5))  # a clock that is ahead; not committed yet
    found = samples(metrics)
    assert found["k2_exchange_to_commit_seconds_count"] == 3
    assert found['k2_exchange_to_commit_seconds_bucket{le="15.0"}'] == 0
    assert found['k2_exchange_to_commit_seconds_bucket{le="30.0"}'] == 1
    assert found['k2_exchange_to_commit_seconds_bucket{le="300.0"}'] == 2
    assert found['k2_exchange_to_commit_seconds_bucket{le="+Inf"}'] == 3
    assert 100_220 <= found["k2_exchange_to_commit_seconds_sum"] < 100_400
    totals.duplicates = 1
    metrics.on_batch(Batch())
    assert samples(metrics)['k2_exchange_to_commit_seconds_bucket{le="0.1"}'] == 1


def test_backfilled_trades_are_neither_received_nor_late() -> None:
    totals = Totals()
    metrics = StreamMetrics(totals)
    metrics.on_batch(batch(1))
    fault = Fault(reason="price is negative", cause=Cause.NEGATIVE)
    reject = Reject(fault=fault, raw=b"{}", position=1, received_us=1)
    past = batch(3_600, 3_599)
    metrics.on_batch(replace(past, messages=0, backfilled=3, rejects=[reject]))
    totals.rows = 3
    metrics.on_batch(Batch())
    found = samples(metrics)
    assert found["k2_commit_delay_seconds"] < 300
    assert found['k2_exchange_to_commit_seconds_bucket{le="300.0"}'] == 1
    assert found["k2_exchange_to_commit_seconds_count"] == 1
    assert found['k2_received_total{kind="trades",symbol="BTCUSDT"}'] == 1
    assert found['k2_message_errors_total{cause="negative"}'] == 1


def test_errors_are_counted_by_cause() -> None:
    metrics = StreamMetrics(Totals())
    fault = Fault(reason="not JSON", cause=Cause.BAD_FRAME)
    reject = Reject(fault=fault, raw=b"x", position=1, received_us=1)
    metrics.on_batch(Batch(rejects=[reject, reject], messages=2))
    assert samples(metrics)['k2_message_errors_total{cause="bad_frame"}'] == 2


def test_connections_and_gaps_are_counted_by_their_events() -> None:
    metrics = StreamMetrics(Totals())
    before = samples(metrics)
    assert before["k2_gaps_found_total"] == before["k2_rollovers_total"] == 0
    assert "k2_reconnect_delay_seconds" not in before
    metrics.on_event("disconnected", {"cause": "stale", "retry_in_s": 0.25})
    metrics.on_event("gap", {"symbol": "BTCUSDT"})
    metrics.on_event("restart_gap", {"symbol": "BTCUSDT"})
    metrics.on_event("gap_filled", {"symbol": "BTCUSDT"})
    metrics.on_event("rollover", {})
    found = samples(metrics)
    assert found['k2_disconnects_total{cause="stale"}'] == 1
    assert found["k2_reconnect_delay_seconds"] == 0.25
    assert found["k2_gaps_found_total"] == 2
    assert found["k2_gaps_filled_total"] == 1
    assert found["k2_rollovers_total"] == 1
