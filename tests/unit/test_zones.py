"""Time zones by name, and instants as they are written in them."""

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from k2cli import zones
from k2cli.config import QuerySettings
from k2cli.errors import UsageError
from k2cli.query.engine import open_session
from k2cli.query.questions import Question
from k2cli.zones import resolve_zone

# In New York the clock showed 01:30 twice on 3 November 2024, and no 02:30 on 10 March.
INSTANTS = [
    ("2024-11-03 05:30:00.000001+00", "2024-11-03T01:30:00.000001-04:00"),
    ("2024-11-03 06:30:00.000001+00", "2024-11-03T01:30:00.000001-05:00"),
    ("2024-03-10 06:59:59.999999+00", "2024-03-10T01:59:59.999999-05:00"),
    ("2024-03-10 07:00:00+00", "2024-03-10T03:00:00.000000-04:00"),
    ("1850-01-01 00:00:00+00", "1849-12-31T19:03:58.000000-04:56:02"),
    ("infinity", "infinity"),
]


@pytest.mark.parametrize("form", ["csv", "csv without header", "ndjson", "tsv"])
def test_instants_are_written_with_the_offset_they_had(form: str) -> None:
    values = ", ".join(f"({at}, TIMESTAMPTZ '{utc}')" for at, (utc, _) in enumerate(INSTANTS))
    sink = io.BytesIO()
    with open_session(QuerySettings(), [], zone="America/New_York") as session:
        session.ask(Question(f"SELECT x, [x] AS l FROM (VALUES {values}) v(i, x) ORDER BY i")).copy(
            form, sink
        )
    lines = sink.getvalue().decode().splitlines()[-len(INSTANTS) :]
    for line, (_, local) in zip(lines, INSTANTS, strict=True):
        assert line.count(local) == 2, line


@pytest.mark.parametrize(
    ("zone", "text"),
    [
        ("Asia/Kathmandu", "05:45:00.000000+05:45"),
        ("America/St_Johns", "20:30:00.000000-03:30"),
        ("Africa/Monrovia", "00:00:00.000000+00:00"),
        ("UTC", "00:00:00.000000Z"),
    ],
)
def test_offsets_have_hours_and_minutes(zone: str, text: str) -> None:
    with open_session(QuerySettings(), [], zone=zone) as session:
        answer = session.ask(Question("SELECT TIMESTAMPTZ '2024-01-01 00:00:00+00' AS x"))
        (row,) = pa.Table.from_batches(answer.batches("text")).to_pylist()
    assert row["x"].endswith(f"T{text}")


def test_parquet_keeps_the_instants_and_names_the_zone() -> None:
    sink = io.BytesIO()
    with open_session(QuerySettings(), [], zone="Asia/Tokyo") as session:
        sql = "SELECT TIMESTAMPTZ '2024-01-01 00:00:00+00' AS x, {'a': 1.5::DECIMAL(18, 8)} AS s"
        session.ask(Question(sql)).copy("parquet", sink)
    table = pq.read_table(pa.BufferReader(sink.getvalue()))
    assert table.schema.field("x").type == pa.timestamp("us", tz="Asia/Tokyo")
    assert table["x"].cast(pa.int64()).to_pylist() == [1_704_067_200_000_000]


@pytest.mark.parametrize(
    ("name", "zone"),
    [
        ("UTC", "UTC"),
        ("utc", "UTC"),
        ("australia/sydney", "Australia/Sydney"),
        ("Etc/GMT-10", "Etc/GMT-10"),
    ],
)
def test_zones_are_found_whatever_their_case(name: str, zone: str) -> None:
    assert resolve_zone(name, env={}) == zone


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("Australia/Sidney", "did you mean Australia/Sydney?"),
        ("new york", "did you mean America/New_York?"),
        ("+10:00", "such as Australia/Sydney"),
        ("", "such as Australia/Sydney"),
        ("localtime", "did you mean"),
    ],
)
def test_unknown_zones_are_refused(name: str, hint: str) -> None:
    with pytest.raises(UsageError, match="is not a time zone") as caught:
        resolve_zone(name, env={})
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize(
    ("tz", "zone"),
    [
        ("Europe/Berlin", "Europe/Berlin"),
        (":Europe/Berlin", "Europe/Berlin"),
        ("/usr/share/zoneinfo/Europe/Berlin", "Europe/Berlin"),
    ],
)
def test_local_zone_is_that_of_tz(tz: str, zone: str) -> None:
    assert resolve_zone("local", env={"TZ": tz}) == zone


def test_local_zone_is_that_of_the_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = tmp_path / "localtime"
    link.symlink_to("/usr/share/zoneinfo/Asia/Tokyo")
    monkeypatch.setattr(zones, "_LINK", link)
    assert resolve_zone("Local", env={}) == "Asia/Tokyo"


def test_local_zone_without_a_name_is_refused() -> None:
    with pytest.raises(UsageError, match="has no IANA name"):
        resolve_zone("local", env={"TZ": "CET-1CEST,M3.5.0,M10.5.0/3"})
