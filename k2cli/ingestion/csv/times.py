"""Times of a CSV file: columns of text into UTC microseconds.

A local time that does not exist (clocks went forward) is unfit; one that comes twice (clocks went
back) is taken as the first of the two, the one in summer time.
"""

from datetime import UTC, datetime
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from k2cli.columns import YEAR_9999_US, Ints, Unfit, characters, microseconds
from k2cli.errors import UsageError
from k2cli.ingestion.csv.layout import TimeRule

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SECONDS_BELOW: Final = 10**11  # a plain number below it is in seconds, where those are known
_MOST_DIGITS: Final = 18  # of an integer that surely fits 64 bits
_US: Final = pa.timestamp("us")
_CLOCK: Final = ("%H:%M:%S.%f", "%H:%M:%S")
_SHORTEST_CLOCK: Final = len("00:00:00")


def check_zone(zone: str) -> None:
    """Raise UsageError unless this machine knows the time zone."""
    try:
        pc.assume_timezone(pa.array([0], _US), zone)
    except pa.ArrowException as exc:
        raise UsageError(f"unknown time zone {zone!r}", hint="like Australia/Sydney") from exc


def whole_numbers(texts: pa.StringArray) -> Ints:
    """Make a column of whole numbers from 0 on from texts of digits alone."""
    if characters(texts).translate(None, b"0123456789"):
        raise Unfit("is not a whole number")
    longest = pc.max(pc.binary_length(texts)).as_py() or 0
    if longest > _MOST_DIGITS:
        raise Unfit(f"has more than {_MOST_DIGITS} digits")
    try:
        return _ints(texts.cast(pa.int64()))
    except pa.ArrowException as exc:
        raise Unfit("is empty") from exc


def times_us(rule: TimeRule, zone: str, parts: list[pa.StringArray]) -> Ints:
    """Turn the one or two columns that make the time into UTC microseconds."""
    times = _raw_times(rule, zone, parts)
    if len(times) and (times.min() < 0 or times.max() > YEAR_9999_US):
        raise Unfit("is out of the years 1970 to 9999")
    return times


def _raw_times(rule: TimeRule, zone: str, parts: list[pa.StringArray]) -> Ints:
    match rule.how:
        case "epoch":
            return _epoch(parts[0], has_seconds=False)
        case "iso":
            return _iso(parts[0], zone)
        case "auto":
            return _auto(parts[0], zone)
        case "format":
            return _formatted(rule, zone, parts)


def _epoch(texts: pa.StringArray, *, has_seconds: bool) -> Ints:
    numbers = whole_numbers(texts)
    if has_seconds:
        numbers = np.where(numbers < _SECONDS_BELOW, numbers * 1000, numbers)
    try:
        return microseconds(numbers)
    except Unfit as exc:
        raise Unfit("is out of the years 1970 to 9999") from exc


def _iso(texts: pa.StringArray, zone: str) -> Ints:
    try:
        local = texts.cast(_US)
    except pa.ArrowException:
        try:  # Arrow wants an offset in all values, or in none
            return _ints(texts.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()))
        except pa.ArrowException as exc:
            raise Unfit("is not a time like 2024-08-08T23:55:48.056") from exc
    return _to_utc(local, zone)


def _auto(texts: pa.StringArray, zone: str) -> Ints:
    is_number = pc.match_substring_regex(texts, "^[0-9]+$")
    numbers = is_number.to_numpy(zero_copy_only=False)
    times = np.empty(len(texts), dtype=np.int64)
    if numbers.any():
        times[numbers] = _epoch(texts.filter(is_number), has_seconds=True)
    if not numbers.all():
        times[~numbers] = _iso(texts.filter(pc.invert(is_number)), zone)
    return times


def _formatted(rule: TimeRule, zone: str, parts: list[pa.StringArray]) -> Ints:
    times = _by_value(parts[0], rule.date_format)
    if len(parts) > 1:
        times = times + _clock(parts[1], rule.time_format)
    if len(times) and (times.min() < 0 or times.max() > YEAR_9999_US):
        raise Unfit("is out of the years 1970 to 9999")
    return _to_utc(pa.array(times).cast(_US), zone)


def _clock(texts: pa.StringArray, pattern: str) -> Ints:
    """Read times of day: the usual ones in Arrow, others by distinct value."""
    if pattern not in _CLOCK or (pc.min(pc.binary_length(texts)).as_py() or 0) < _SHORTEST_CLOCK:
        return _by_value(texts, f"%Y-%m-%d {pattern}", prefix="1970-01-01 ")
    try:
        days = pc.binary_join_element_wise("1970-01-01", texts, " ")
        return _ints(days.cast(_US).cast(pa.int64()))
    except pa.ArrowException as exc:
        raise Unfit("is not a time of day") from exc


def _by_value(texts: pa.StringArray, pattern: str, *, prefix: str = "") -> Ints:
    encoded = texts.dictionary_encode()
    moments = [_parse(f"{prefix}{text}", pattern) for text in encoded.dictionary.to_pylist()]
    values: Ints = np.array(moments, dtype=np.int64)
    codes: Ints = encoded.indices.to_numpy()
    return values[codes]


def _parse(whole: str, pattern: str) -> int:
    try:
        moment = datetime.strptime(f"{whole} +0000", f"{pattern} %z")
    except ValueError as exc:
        raise Unfit(f"is not a date or time like {pattern}") from exc
    delta = moment - _EPOCH
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


def _to_utc(local: pa.TimestampArray, zone: str) -> Ints:
    if zone == "UTC":
        return _ints(local.cast(pa.int64()))
    try:
        moments = pc.assume_timezone(local, zone, ambiguous="earliest", nonexistent="raise")
    except pa.ArrowException as exc:
        raise Unfit(f"does not exist in {zone}: clocks went forward") from exc
    return _ints(moments.cast(pa.int64()))


def _ints(column: pa.Array) -> Ints:
    return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.int64)
