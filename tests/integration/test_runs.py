"""A row's way can be followed back: its runs are in log lines, headers and snapshots."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from confluent_kafka import Producer

from k2cli.simulator import SimulatorOptions, running_simulator
from support.cluster import Cluster
from support.running import Run, k2_at


def events(talk: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in talk.splitlines() if line.startswith("{")]


def test_messages_and_snapshots_tell_their_run(cluster: Cluster, topic_name: str) -> None:
    topic = f"{topic_name}.trades"
    cluster.create(topic, partitions=1)
    line = json.dumps(
        {"exchange": "X", "symbol": "BTCUSDT", "asset_class": "crypto", "side": "BUY"}
        | {"currency": "USDT", "price": "1", "quantity": "2", "trade_conditions": []}
        | {"timestamp": "2024-08-08T00:00:00Z", "ingestion_timestamp": "2024-08-08T00:00:00Z"}
        | {"message_id": "00000000-0000-8000-8000-000000000001", "trade_id": "X-1"}
    )

    def run_as(run: str) -> Cluster:
        return replace(cluster, env={**cluster.env, "K2_RUN": run})

    produced = run_as("producer-7").run("produce", topic, stdin=f"{line}\n")
    assert produced.exit_code == 0, produced.stderr
    cluster.send(topic, [b"no record"])
    (message, _) = cluster.read(topic, 2)
    assert message.headers() == [("k2.run", b"producer-7")]

    consume = ("consume", "--topic", topic, "--until-end", "--log-format", "json")
    consumed = run_as("consumer-8").run(*consume)
    assert consumed.exit_code == 0, consumed.stderr
    told = {event["event"]: event for event in events(consumed.stderr)}
    assert {"assigned", "commit", "reject"} <= set(told)
    assert {event["run"] for event in told.values()} == {"consumer-8"}

    shown = cluster.run("table", "snapshots", "trades", "--format", "json")
    (snapshot,) = json.loads(shown.stdout)
    assert (snapshot["run"], snapshot["snapshot_id"]) == (
        "consumer-8",
        told["commit"]["snapshot_id"],
    )


def test_dead_letters_and_their_replay_keep_the_run_of_the_message(
    cluster: Cluster, topic_name: str
) -> None:
    topic = f"{topic_name}.trades"
    cluster.create(topic, partitions=1)
    producer = Producer(cluster.kafka)
    producer.produce(topic, b"no record", b"key", headers=[("k2.run", b"first"), ("a", b"1")])
    assert producer.flush(60) == 0
    assert cluster.consume("--topic", topic)["rejects"] == 1
    (letter,) = cluster.read(f"{topic}.dlq", 1)
    headers = dict(letter.headers() or [])
    assert (headers["k2.run"], headers["a"]) == (b"first", b"1")
    replayed = cluster.run("dlq", "replay", "-t", topic, "--all")
    assert replayed.exit_code == 0, replayed.stderr
    again = cluster.read(topic, 2)[1]
    assert dict(again.headers() or [])["k2.run"] == b"first"


def test_log_lines_have_a_level_and_the_run(run: Run, home: Path) -> None:
    with running_simulator(SimulatorOptions()) as simulator:
        see_log_lines(run, home, simulator.url)


def see_log_lines(run: Run, home: Path, url: str) -> None:
    stream = ["stream", "binance", "--url", url, "--symbols", "BTCUSDT"]
    stream += ["--max-messages", "100", "--log-format", "json"]
    done = run(stream, env={"K2_RUN": "nightly-1"})
    assert done.exit_code == 0, done.stderr
    lines = events(done.stderr)
    assert {"connected", "commit"} <= {line["event"] for line in lines}
    assert {line["run"] for line in lines} == {"nightly-1"}
    assert {line["level"] for line in lines} == {"info"}
    quiet = run([*stream, "--log-level", "warning"])
    assert quiet.exit_code == 0, quiet.stderr
    assert events(quiet.stderr) == []
    snapshots = json.loads(k2_at(home)("table", "snapshots", "trades", "--format", "json").stdout)
    runs = [snapshot["run"] for snapshot in snapshots]
    assert runs[-1] == "nightly-1"
    assert len(runs[0]) == 16
    text = run([*stream[:-2], "--log-format", "text"], env={"K2_RUN": "r"}).stderr
    assert " run=r\n" in text
    assert run(stream, env={"K2_RUN": "two words"}).exit_code == 3


def test_an_error_and_the_sums_are_lines_of_a_json_log(run: Run, cluster: Cluster) -> None:
    stream = ["stream", "binance", "--url", "ws://127.0.0.1:9", "--symbols", "BTCUSDT"]
    stream += ["--connect-timeout", "500ms", "--log-format", "json"]
    done = run(stream, env={"K2_RUN": "r"})
    assert (done.exit_code, done.stdout) == (5, "")
    *_, summary, error = map(json.loads, done.stderr.splitlines())
    assert (summary["event"], summary["rows"], summary["run"]) == ("summary", 0, "r")
    assert (error["event"], error["level"], error["exit_code"]) == ("error", "error", 5)
    assert error["message"]
    assert run([*stream[:-2], "--log-format", "text"]).stderr.splitlines()[-1].startswith("hint:")
    consumed = cluster.run("consume", "--topic", "none.trades", "--log-format", "json")
    assert consumed.exit_code == 4
    (line,) = consumed.stderr.splitlines()
    assert json.loads(line)["hint"].startswith("k2 topic create")


def test_files_are_lines_of_the_log_where_there_is_one(
    run: Run, home: Path, tmp_path: Path
) -> None:
    good, bad = tmp_path / "good.csv", tmp_path / "bad.csv"
    good.write_text("1,10.5,2,21,1723161600000,True,True\n")
    bad.write_text("1,ten,2,21,1723161600000,True,True\n")
    load = ["load", "csv", str(good), str(bad), "--layout", "binance-trades"]
    load += ["--symbol", "BTCUSDT", "--log-format", "json"]
    done = run(load, env={"K2_RUN": "nightly-2"})
    assert (done.exit_code, done.stdout) == (6, "")
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["event"] for line in lines] == ["loaded", "failed", "summary", "error"]
    assert (lines[0]["path"], lines[0]["rows"]) == (str(good), 1)
    assert lines[1]["path"] == str(bad)
    assert {line["run"] for line in lines} == {"nightly-2"}
    again = run([*load, "--log-level", "warning"])
    assert [json.loads(line)["event"] for line in again.stderr.splitlines()] == ["failed", "error"]
    snapshots = k2_at(home)("table", "snapshots", "trades", "--format", "json").stdout
    assert [snapshot["run"] for snapshot in json.loads(snapshots)] == ["nightly-2"]
