"""Dead letters of messages with odd times, and of topics that cannot be had."""

import json
from pathlib import Path

import pytest
from confluent_kafka import Message

from k2cli.ingestion.kafka.deadletters import DeadLetterFile, dead_letter
from k2cli.iso import iso_utc_ms
from k2cli.rejects import RejectLog

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
):
    assert iso_utc_ms(time_ms) == text
    letter = dead_letter(message(time_ms), "why")
    assert ("k2.time", text.encode()) in letter.headers()
    path = tmp_path / "rejects"
    with RejectLog(path, run="r1") as log:
        DeadLetterFile(log).write([letter])
    line = json.loads(path.read_bytes())
    is_number = text.lstrip("-").isdigit()
    assert line["received"] == (text + "000" if is_number else text.replace("Z", "000Z"))
    assert line["run"] == "r1"
