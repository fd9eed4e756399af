from datetime import UTC, datetime, timedelta, timezone

import pytest

from k2cli.errors import UsageError
from k2cli.query.timespan import Timespan, parse_time, parse_timespan

NOW = datetime(2024, 8, 9, 10, 30, 15, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2024-08-08", datetime(2024, 8, 8, tzinfo=UTC)),
        ("2024-08-08T10:30", datetime(2024, 8, 8, 10, 30, tzinfo=UTC)),
        ("2024-08-08 10:30:01.000055", datetime(2024, 8, 8, 10, 30, 1, 55, tzinfo=UTC)),
        ("2024-08-08T10:30:00Z", datetime(2024, 8, 8, 10, 30, tzinfo=UTC)),
        ("2024-08-08t10:30:00z", datetime(2024, 8, 8, 10, 30, tzinfo=UTC)),
        ("2024-08-08T10:30+02:00", datetime(2024, 8, 8, 8, 30, tzinfo=UTC)),
        ("-15m", NOW - timedelta(minutes=15)),
        ("-30s", NOW - timedelta(seconds=30)),
        ("-2h", NOW - timedelta(hours=2)),
        ("-7d", NOW - timedelta(days=7)),
        ("-1w", NOW - timedelta(weeks=1)),
        ("2024-08", datetime(2024, 8, 1, tzinfo=UTC)),
        ("1723113000", datetime(2024, 8, 8, 10, 30, tzinfo=UTC)),
        ("1723113000.5", datetime(2024, 8, 8, 10, 30, 0, 500_000, tzinfo=UTC)),
        ("1723113000055.0019", datetime(2024, 8, 8, 10, 30, 0, 55_001, tzinfo=UTC)),
        ("1723113000055", datetime(2024, 8, 8, 10, 30, 0, 55_000, tzinfo=UTC)),
        ("1723113000000055", datetime(2024, 8, 8, 10, 30, 0, 55, tzinfo=UTC)),
        ("1723113000000055999", datetime(2024, 8, 8, 10, 30, 0, 55, tzinfo=UTC)),
        ("-5H", NOW - timedelta(hours=5)),
        ("now", NOW),
        ("Today", datetime(2024, 8, 9, tzinfo=UTC)),
        ("yesterday", datetime(2024, 8, 8, tzinfo=UTC)),
    ],
)
def test_parse_time_reads_what_people_write(text: str, moment: datetime) -> None:
    parsed = parse_time(text, now=NOW)
    assert (parsed, parsed.tzinfo) == (moment, UTC)


def test_parse_time_takes_today_in_utc() -> None:
    sydney = datetime(2024, 8, 9, 2, 0, tzinfo=timezone(timedelta(hours=10)))
    assert parse_time("today", now=sydney) == datetime(2024, 8, 8, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tomorrow",
        "2024-13-01",
        "2024-13",
        "2024",
        "-1M",
        "-12M",
        "9" * 20,
        "15m",
        "-15x",
        "-m",
        "0001-01-01T00:00+05:00",
        f"-{'9' * 30}d",
    ],
)
def test_parse_time_refuses_the_rest(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_time(text, now=NOW)


def test_timespan_is_open_without_options() -> None:
    assert parse_timespan(None, None, now=NOW) == Timespan(None, None)


@pytest.mark.parametrize(("start", "end"), [("now", "now"), ("2024-08-09", "2024-08-08")])
def test_timespan_refuses_a_start_that_is_not_before_the_end(start: str, end: str) -> None:
    with pytest.raises(UsageError, match="not before"):
        parse_timespan(start, end, now=NOW)


def test_timespan_names_the_option_that_is_wrong() -> None:
    with pytest.raises(UsageError, match="--end 'soon'"):
        parse_timespan("-2h", "soon", now=NOW)
