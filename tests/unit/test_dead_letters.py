"""Dead letters of messages with odd times, and of topics that cannot be had."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Message

from k2cli.errors import BadData, ConfigError, K2Error, NotFound, Unavailable
from k2cli.ingestion.kafka.deadletters import DeadLetterFile, DeadLetterTopics, dead_letter
from k2cli.iso import iso_utc_ms
from k2cli.rejects import Cause, Fault, RejectLog

WHY = Fault(reason="why", cause=Cause.BAD_BODY)
YEAR_1_MS, YEAR_9999_MS = -62_135_596_800_000, 253_402_300_799_999


def message(time_ms: int = 0, topic: str = "t") -> Message:
    return Message(topic=topic, partition=1, offset=2, value=b"bad", timestamp=(1, time_ms))


@pytest.mark.parametrize(
    ("time_ms", "text"),
    [
        (YEAR_1_MS, "0001-01-01T00:00:00.000Z"),
        (YEAR_9999_MS, "9999-12-31T23:59:59.999Z"),
        (YEAR_1_MS - 1, "-62135596800001"),
        (YEAR_9999_MS + 1, "253402300800000"),
        (1_700_000_000_000_000, "1700000000000000"),
        (1_700_000_000_000_000_000, "1700000000000000000"),
        ((1 << 63) - 1, "9223372036854775807"),
        (-(1 << 63), "-9223372036854775808"),
    ],
)
def test_a_time_outside_the_calendar_is_written_as_a_number(
    time_ms: int, text: str, tmp_path: Path
) -> None:
    assert iso_utc_ms(time_ms) == text
    letter = dead_letter(message(time_ms), WHY)
    assert ("k2.time", text.encode()) in letter.headers()
    path = tmp_path / "rejects"
    with RejectLog(path, run="r1") as log:
        DeadLetterFile(log).write([letter])
    line = json.loads(path.read_bytes())
    is_number = text.lstrip("-").isdigit()
    assert line["received"] == (text + "000" if is_number else text.replace("Z", "000Z"))
    assert line["run"] == "r1"


def test_headers_and_lines_say_what_is_wrong_as_words(tmp_path: Path) -> None:
    fault = Fault(
        reason="price -1 is negative", cause=Cause.NEGATIVE, field="price", value="-1 \ud800"
    )
    headers = dict(dead_letter(message(), fault).headers())
    expected = {"reason": fault.reason, "code": "bad_price", "cause": "negative", "field": "price"}
    for name, text in {**expected, "topic": "t", "partition": "1", "offset": "2"}.items():
        assert headers[f"k2.{name}"] == text.encode()
    assert headers["k2.value"] == b"-1 \\ud800"
    path = tmp_path / "rejects"
    with RejectLog(path, run="r1") as log:
        DeadLetterFile(log).write([dead_letter(message(), fault)])
    assert json.loads(path.read_bytes()).items() >= {**expected, "source": "t/1"}.items()


def test_headers_without_a_field_lack_its_name() -> None:
    names = {name for name, _ in dead_letter(message(), WHY).headers()}
    assert {"k2.code", "k2.cause"} <= names
    assert {"k2.field", "k2.value"}.isdisjoint(names)


class Brokers:
    """The brokers' part: topics and a producer that refuse as they are told to."""

    def __init__(
        self,
        *,
        create: K2Error | None = None,
        flush: K2Error | None = None,
        refused: str | None = None,
        existing: Sequence[str] = (),
    ) -> None:
        self._create = create
        self._flush = flush
        self._refused = refused
        self._existing = existing
        self.sent: list[str] = []

    def setting(self, topic: str, name: str) -> str | None:
        raise NotFound(f"{name} of {topic}")

    def create(self, name: str, **_: object) -> bool:
        if self._create is not None and name != "good.dlq":
            raise self._create
        return True

    def describe(self, names: Sequence[str]) -> Sequence[str]:
        if not set(names) <= set(self._existing):
            raise NotFound(f"no {names}")
        return names

    def offer(self, topic: str, *args: object) -> None:
        on_refused = args[-1]
        if self._refused and topic != "good.dlq":
            assert callable(on_refused)
            on_refused(self._refused)
        else:
            self.sent.append(topic)

    def flush(self) -> None:
        if self._flush is not None:
            raise self._flush


def written(brokers: Brokers, path: Path) -> tuple[list[str], list[Mapping[str, object]]]:
    """Write dead letters of two topics; return the sources in the refuge, and the events."""
    events: list[Mapping[str, object]] = []
    server: Any = brokers
    with RejectLog(path, run="r1") as log:
        letters = DeadLetterTopics(
            writer=server,
            topics=server,
            refuge=DeadLetterFile(log),
            observe=lambda event, /, **fields: events.append({"event": event, **fields}),
        )
        letters.write([dead_letter(message(topic=name), WHY) for name in ("t", "good", "t")])
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["source"] for line in lines], events


@pytest.mark.parametrize(
    "error", [BadData("the name is too long"), ConfigError("not authorized")], ids=str
)
def test_letters_of_a_topic_that_cannot_be_created_go_to_the_file(
    error: K2Error, tmp_path: Path
) -> None:
    brokers = Brokers(create=error)
    kept, events = written(brokers, tmp_path / "rejects")
    assert kept == ["t/1", "t/1"]
    assert brokers.sent == ["good.dlq"]
    assert [event["event"] for event in events] == ["dead_letter_refused"] * 2
    assert {event["reason"] for event in events} == {str(error)}


def test_a_topic_that_exists_needs_no_right_to_create_it(tmp_path: Path) -> None:
    brokers = Brokers(create=ConfigError("not authorized"), existing=["t.dlq"])
    assert written(brokers, tmp_path / "rejects") == ([], [])
    assert brokers.sent == ["t.dlq", "good.dlq", "t.dlq"]


def test_letters_of_a_topic_that_cannot_be_written_go_to_the_file(tmp_path: Path) -> None:
    brokers = Brokers(refused="not authorized")
    kept, events = written(brokers, tmp_path / "rejects")
    assert kept == ["t/1", "t/1"]
    assert {event["reason"] for event in events} == {"not authorized"}


def test_letters_that_the_producer_cannot_send_go_to_the_file(tmp_path: Path) -> None:
    kept, _ = written(Brokers(flush=ConfigError("not authorized")), tmp_path / "rejects")
    assert kept == ["t/1", "good/1", "t/1"]


@pytest.mark.parametrize("where", ["create", "flush"])
def test_brokers_that_are_unavailable_are_waited_for(where: str, tmp_path: Path) -> None:
    failing: dict[str, Any] = {where: Unavailable("no answer")}
    with pytest.raises(Unavailable):
        written(Brokers(**failing), tmp_path / "rejects")
    assert not (tmp_path / "rejects").exists()


class Batches:
    """A producer whose messages go in one batch until it is flushed; a large one is refused."""

    def __init__(self, largest: int) -> None:
        self._largest = largest
        self._batch: list[tuple[int, Callable[[str], None]]] = []
        self.accepted: list[int] = []  # sizes
        self.sends = 0

    def setting(self, topic: str, name: str) -> str | None:
        raise NotFound(f"{name} of {topic}")

    def create(self, *_: object, **__: object) -> bool:
        return True

    def offer(self, _: str, *args: Any) -> None:
        self._batch.append((len(args[1]), args[-1]))

    def flush(self) -> None:
        self.sends += 1
        batch, self._batch = self._batch, []
        is_refused = any(size > self._largest for size, _ in batch)
        for size, on_refused in batch:
            if is_refused:
                on_refused("too large")
            else:
                self.accepted.append(size)


def offered(brokers: Batches, sizes: Sequence[int], path: Path) -> list[int]:
    """Write dead letters of these sizes; return the sizes of those in the refuge."""
    server: Any = brokers
    messages = [
        Message(topic="t", partition=0, offset=at, value=b"x" * size, timestamp=(1, 0))
        for at, size in enumerate(sizes)
    ]
    with RejectLog(path, run="r1") as log:
        letters = DeadLetterTopics(
            writer=server, topics=server, refuge=DeadLetterFile(log), observe=lambda *_, **__: None
        )
        letters.write([dead_letter(each, WHY) for each in messages])
    return [len(json.loads(line)["raw"]) for line in path.read_text().splitlines()]


def test_a_few_large_letters_are_found_with_few_sends(tmp_path: Path) -> None:
    sizes = [1] * 5_000
    for at in (0, 17, 18, 4_999):
        sizes[at] = 100 + at
    brokers = Batches(largest=10)
    assert offered(brokers, sizes, tmp_path / "rejects") == [100, 117, 118, 5_099]
    assert brokers.accepted == [1] * 4_996
    assert brokers.sends < 120


def test_a_topic_that_refuses_all_letters_does_not_hold_up_the_run(tmp_path: Path) -> None:
    """Its operator may have set a small limit: letter by letter would take minutes."""
    brokers = Batches(largest=0)
    assert offered(brokers, [1] * 20_000, tmp_path / "rejects") == [1] * 20_000
    assert brokers.accepted == []
    assert brokers.sends < 2_100
