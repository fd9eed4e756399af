"""`--metrics`: what Prometheus reads of a run, while it runs."""

import json
import signal
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest

from k2cli import __version__
from k2cli.commands.metrics import RunMetrics
from k2cli.ingestion.kafka.consumer import Rebalance, open_reader
from k2cli.pipelines.consume.progress import Start
from k2cli.simulator import SimulatorOptions, running_simulator
from support.cluster import Cluster, numbered_trades, unexpected
from support.running import Process, Run, start_k2
from support.scraping import Samples, consumption_of_nothing, scrape, scraped_until
from support.waiting import PATIENCE_S

FREE_PORT = ("--metrics", "127.0.0.1:0")
STREAM = ("stream", "binance", "--symbols", "BTCUSDT", "--flush-interval", "200ms")
ON_PORT_1 = (*STREAM, "--url", "ws://127.0.0.1:1", "--connect-timeout", "100ms")


class Served:
    """A run of k2 that serves metrics."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._said: list[str] = []
        self.url = self._wait_for("metrics", "url")

    def _wait_for(self, event: str, field: str) -> str:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._said.append(line)
            if line.startswith("{") and (told := json.loads(line))["event"] == event:
                return str(told[field])
        raise AssertionError("".join(self._said))

    def end(self) -> dict[str, Any]:
        """End it as Ctrl-C does; return its summary."""
        self._process.send_signal(signal.SIGINT)
        stdout, stderr = self._process.communicate(timeout=PATIENCE_S)
        assert self._process.returncode == 0, "".join(self._said) + stderr
        summary: dict[str, Any] = json.loads(stdout)
        return summary


@contextmanager
def served(*args: object, env: Mapping[str, str]) -> Iterator[Served]:
    """Run k2 with metrics on a free port."""
    told = ("--log-format", "json", "--summary", "json", *FREE_PORT)
    with start_k2(*args, *told, env=env) as process:
        try:
            yield Served(process)
        finally:
            process.kill()


def sums(samples: Samples, summary: Mapping[str, Any]) -> dict[str, float]:
    """Return what the samples say of all that the summary counts."""
    names = [name for name in summary if name not in ("duration_s", "silent_streams")]
    return {name: samples[f"k2_{name}_total", ()] for name in names}


def is_all_committed(samples: Samples) -> bool:
    """Tell whether the simulator has sent all, and nothing is pending any more."""
    sums = {name: value for (name, labels), value in samples.items() if not labels}
    messages = sums.get("k2_messages_total", 0)
    settled = sums.get("k2_rows_total", 0) + sums.get("k2_rejects_total", 0)
    return 500 <= messages == settled and "k2_commit_delay_seconds" in sums


def test_stream_tells_what_its_summary_tells(k2_env: dict[str, str]) -> None:
    # After every 50 trades one more frame, which is broken; the tenth of every ten is left out.
    options = SimulatorOptions(first_id=100, limit=500, garbage_every=50, skip_every=10)
    with (
        running_simulator(options) as simulator,
        served(*STREAM, "--url", simulator.url, env=k2_env) as run,
    ):
        samples = scraped_until(run.url, is_all_committed)
        summary = run.end()
    assert summary["rows"] > 0 < summary["rejects"]
    assert summary["missing"] > 0 < summary["commits"]
    del summary["duration_s"]
    assert summary.pop("silent_streams") == 0  # A state at the end, not a sum over the run.
    assert sums(samples, summary) == summary
    assert 0 <= samples["k2_commit_delay_seconds", ()] < PATIENCE_S
    assert samples["k2_commit_duration_seconds_count", ()] == summary["commits"]
    assert 0 < samples["k2_commit_duration_seconds_sum", ()] < PATIENCE_S
    assert samples["k2_events_total", (("event", "commit"), ("level", "info"))] > 0
    assert samples["k2_events_total", (("event", "gap"), ("level", "warning"))] > 0
    assert samples["k2_events_total", (("event", "stale"), ("level", "warning"))] == 0
    assert samples["k2_build_info", (("version", __version__),)] == 1
    assert samples["process_resident_memory_bytes", ()] > 0


def test_metrics_end_with_the_run(k2_env: dict[str, str]) -> None:
    with (
        running_simulator(SimulatorOptions(first_id=100, limit=10)) as simulator,
        served(*STREAM, "--url", simulator.url, env=k2_env) as run,
    ):
        scraped_until(run.url, lambda now: now.get(("k2_messages_total", ())) == 10)
        run.end()
        with pytest.raises(URLError, match="refused"):
            scrape(run.url)


def test_metrics_are_on_their_address_only(k2_env: dict[str, str]) -> None:
    with (
        running_simulator(SimulatorOptions(first_id=100, limit=10)) as simulator,
        served(*STREAM, "--url", simulator.url, env=k2_env) as run,
    ):
        assert scrape(run.url)
        with pytest.raises(URLError, match="refused"):
            scrape(run.url.replace("127.0.0.1", "127.0.0.2"))


def test_consume_tells_lag_and_delay_of_every_partition(cluster: Cluster, topic_name: str) -> None:
    topic = f"{topic_name}.trades"
    cluster.create(topic, partitions=2)
    cluster.produce(topic, numbered_trades(300))
    cluster.send(topic, [b"no message"], partition=1)
    args = ("consume", "--topic", topic, "--group", topic_name, "--rejects", cluster.home / "bad")
    with served(*args, "--commit-interval", "200ms", env=cluster.env) as run:
        samples = scraped_until(
            run.url,
            lambda now: (
                now.get(("k2_rows_total", ())) == 300
                and ("k2_commit_delay_seconds", place(topic, 1)) in now
                and now.get(("k2_consumer_lag_messages", place(topic, 0))) == 0
                and now.get(("k2_consumer_lag_messages", place(topic, 1))) == 0
            ),
        )
        summary = run.end()
    del summary["duration_s"]
    assert (summary["messages"], summary["rejects"]) == (301, 1)
    assert sums(samples, summary) == summary
    for number in (0, 1):
        assert samples["k2_consumer_lag_messages", place(topic, number)] == 0
        assert 0 <= samples["k2_commit_delay_seconds", place(topic, number)] < PATIENCE_S


def test_lag_is_what_is_between_the_committed_offset_and_the_end(
    cluster: Cluster, topic_name: str, tmp_path: Path
) -> None:
    cluster.create(topic_name, partitions=1)
    cluster.produce(topic_name, numbered_trades(300))
    consumption = consumption_of_nothing(tmp_path)
    metrics = RunMetrics(unexpected)
    metrics.watch_consumption(consumption)
    rebalance = Rebalance(
        assigned=lambda places: dict.fromkeys(places, 0),
        revoked=lambda _: None,
        lost=lambda _: None,
    )
    with open_reader(
        kafka=cluster.kafka, group=topic_name, rebalance=rebalance, observe=unexpected
    ) as reader:
        reader.subscribe([topic_name])
        while not reader.read(100, 1.0):
            pass
        metrics.on_read(reader)
    consumption.progress.assign({(topic_name, 0): Start(stored=100, first=0, end=300)})
    (lag,) = (each for each in metrics.collect() if each.name == "k2_consumer_lag_messages")
    assert [(sample.labels, sample.value) for sample in lag.samples] == [
        ({"topic": topic_name, "partition": "0"}, 200)
    ]


def test_what_is_read_but_not_committed_is_lag(cluster: Cluster, topic_name: str) -> None:
    topic = f"{topic_name}.trades"
    cluster.create(topic, partitions=2)
    cluster.produce(topic, numbered_trades(3_000))
    args = ("consume", "--topic", topic, "--group", topic_name, "--commit-interval", "1h")

    def lag(now: Samples) -> float:
        name = "k2_consumer_lag_messages"
        return sum(now.get((name, place(topic, number)), 0.0) for number in (0, 1))

    with served(*args, env=cluster.env) as run:
        samples = scraped_until(
            run.url, lambda now: now.get(("k2_messages_total", ())) == 3_000 and lag(now) == 3_000
        )
        assert samples["k2_rows_total", ()] == 0
        assert run.end()["rows"] == 3_000


def place(topic: str, number: int) -> tuple[tuple[str, str], ...]:
    return (("partition", str(number)), ("topic", topic))


# --- what is refused


def test_port_in_use_is_an_error_with_a_way_out(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        result = run([*ON_PORT_1, "--metrics", address])
    assert (result.exit_code, result.stdout) == (5, "")
    assert f"error: cannot serve metrics on {address}: " in result.stderr
    assert "in use" in result.stderr
    assert "hint: stop the server there, or choose a free port" in result.stderr


@pytest.mark.parametrize("host", ["192.0.2.1", "[2001:db8::1]", "a..b"])
def test_address_of_another_machine_is_an_error(run: Run, host: str) -> None:
    result = run([*ON_PORT_1, "--metrics", f"{host}:9091"])
    assert (result.exit_code, result.stdout) == (5, "")
    assert f"error: cannot serve metrics on {host}:9091: " in result.stderr


@pytest.mark.parametrize("address", ["here", ":", "127.0.0.1:", ":70000", ":-1", ":9091/metrics"])
def test_what_is_no_address_is_a_wrong_option(run: Run, address: str) -> None:
    result = run([*ON_PORT_1, "--metrics", address])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--metrics" in result.stderr
    assert "is not HOST:PORT" in result.stderr
