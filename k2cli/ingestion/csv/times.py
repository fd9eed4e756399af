"""Parse the times of a CSV file: columns of text to UTC microseconds.

Numbers since 1970 are seconds, milliseconds, microseconds or nanoseconds, by magnitude: from 1990
to 2100 the four do not overlap. Digits after the microsecond are truncated, with a notice.

A local time that does not exist (clocks went forward) is rejected; one that occurs twice (clocks
went back) is read as the first of the two, in summer time.
"""

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from k2cli.columns import YEAR_9999_US, Ints, Unfit, characters
from k2cli.errors import UsageError
from k2cli.ingestion.csv.layout import TimeRule
from k2cli.rejects import Cause

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SECONDS_BELOW: Final = 10**11  # plain numbers below it are seconds,
_MILLISECONDS_BELOW: Final = 10**14  # below this milliseconds,
_MICROSECONDS_BELOW: Final = 10**17  # below this microseconds, and nanoseconds from here on
_MAX_DIGITS: Final = 18  # of an integer that always fits 64 bits
_EPOCH_DIGITS: Final = 19  # of nanoseconds
_FRACTION: Final = 9  # fraction digits that are read
_OF_TIMES: Final = {  # causes of integer faults, for times
    Cause.NOT_AN_INTEGER: Cause.BAD_TIME,
    Cause.OUT_OF_RANGE: Cause.TIME_OUT_OF_RANGE,
}
_US: Final = pa.timestamp("us")
_NS: Final = pa.timestamp("ns")
_CLOCK: Final = ("%H:%M:%S.%f", "%H:%M:%S")
_SHORTEST_CLOCK: Final = len("00:00:00")
_NUMBER: Final = r"^[0-9]+(?:\.[0-9]*)?$"
_COMPACT: Final = r"^(?:19|20)(?:[0-9]{12}|[0-9]{15}|[0-9]{18}|[0-9]{21})$"
_COMPACT_PARTS: Final = (
    r"^([0-9]{4})([0-9]{2})([0-9]{2})([0-9]{2})([0-9]{2})([0-9]{2})([0-9]*)$",
    r"\1-\2-\3 \4:\5:\6.\7",
)
_ISO_SPELLINGS: Final = (
    (r"^\s+|\s+$", ""),
    (r"(:[0-9]{2}),([0-9])", r"\1.\2"),
    (r"(:[0-9]{2})\.$", r"\1"),
    (r" *(?:UTC|GMT|Z|z)$", "Z"),
    (r" +([+-][0-9]{2}:?[0-9]{2})$", r"\1"),
)
_OFFSET: Final = r":.*(?:Z|[+-][0-9]{2}(?::?[0-9]{2})?)$"
# strptime directives as regular expressions and as parts of an ISO time.
_DIRECTIVES: Final = {
    "Y": "([0-9]{4})",
    "m": "([0-9]{2})",
    "d": "([0-9]{2})",
    "H": "([0-9]{2})",
    "M": "([0-9]{2})",
    "S": "([0-9]{2})",
    "f": "([0-9]{0,9})",
}
_DATE_MARKS: Final = "YymdbBjxcG"
_PARTS: Final = re.compile(r"%(.)|([^%]+)")
_LONG_FRACTION: Final = re.compile(r"([0-9]{6})[0-9]{1,3}(?![0-9])")


def check_zone(zone: str) -> None:
    """Raise UsageError if this machine does not have the time zone."""
    try:
        pc.assume_timezone(pa.array([0], _US), zone)
    except pa.ArrowException as exc:
        raise UsageError(
            f"unknown time zone {zone!r}", hint="use a name like Australia/Sydney"
        ) from exc


def whole_numbers(texts: pa.StringArray, *, digits: int = _MAX_DIGITS) -> Ints:
    """Parse texts of digits to a column of integers."""
    if characters(texts).translate(None, b"0123456789"):
        raise Unfit("is not a whole number", Cause.NOT_AN_INTEGER)
    longest = pc.max(pc.binary_length(texts)).as_py() or 0
    if longest > digits:
        raise Unfit(f"has more than {digits} digits", Cause.OUT_OF_RANGE)
    try:
        return _ints(texts.cast(pa.int64()))
    except pa.ArrowException as exc:
        if longest > _MAX_DIGITS:
            raise Unfit("is not a number of 64 bits", Cause.OUT_OF_RANGE) from exc
        raise Unfit("is empty", Cause.MISSING) from exc


class TimeReader:
    """Parses the one or two columns of the time to UTC microseconds."""

    def __init__(self, rule: TimeRule, zone: str, *, is_any_time: bool = False) -> None:
        self._rule = rule
        self._zone = zone
        self._first, self._last = (0, YEAR_9999_US) if is_any_time else _plausible()
        self.is_truncated = False  # a time had digits after the microsecond

    def read(self, parts: Sequence[pa.StringArray]) -> Ints:
        """Read columns of texts.

        Raises:
            Unfit: a value is not such a time, or is out of the plausible years.
        """
        times = self._raw(parts)
        if len(times) and (times.min() < self._first or times.max() > self._last):
            years = f"{_year(self._first)} to {_year(self._last)}"
            raise Unfit(f"is out of the years {years}", Cause.TIME_OUT_OF_RANGE)
        return times

    def _raw(self, parts: Sequence[pa.StringArray]) -> Ints:
        match self._rule.how:
            case "epoch":
                return self._epoch(parts[0])
            case "iso":
                return self._iso(parts[0])
            case "auto":
                return self._auto(parts[0])
            case "format":
                return self._formatted(parts)

    def _auto(self, texts: pa.StringArray) -> Ints:
        is_compact = pc.match_substring_regex(texts, _COMPACT)
        is_number = pc.and_not(pc.match_substring_regex(texts, _NUMBER), is_compact)
        is_text = pc.invert(pc.or_(is_number, is_compact))
        parts = [(is_number, self._epoch), (is_compact, self._compact), (is_text, self._iso)]
        return _by_part(texts, parts)

    def _epoch(self, texts: pa.StringArray) -> Ints:
        try:
            numbers = whole_numbers(texts, digits=_EPOCH_DIGITS)
        except Unfit as exc:
            if b"." in characters(texts):
                return self._fractions(texts)
            raise Unfit(str(exc), _OF_TIMES.get(exc.cause, exc.cause)) from exc
        return self._scaled(numbers, np.zeros(1, dtype=np.int64))

    def _fractions(self, texts: pa.StringArray) -> Ints:
        """Parse numbers with an optional fraction, exactly."""
        if not pc.all(pc.match_substring_regex(texts, _NUMBER)).as_py():
            reason = "is not a number of seconds, milliseconds or microseconds"
            raise Unfit(reason, Cause.BAD_TIME)
        whole = pc.replace_substring_regex(texts, r"\..*$", "")
        fraction = pc.replace_substring_regex(texts, r"^[0-9]+\.?", "")
        if (pc.max(pc.binary_length(fraction)).as_py() or 0) > _FRACTION:
            self.is_truncated = True
        nine = pc.utf8_slice_codeunits(pc.utf8_rpad(fraction, _FRACTION, "0"), 0, _FRACTION)
        billionths = _ints(nine.cast(pa.int64()))
        return self._scaled(whole_numbers(whole, digits=_EPOCH_DIGITS), billionths)

    def _scaled(self, numbers: Ints, billionths: Ints) -> Ints:
        """Convert numbers to microseconds, each by its magnitude."""
        if not len(numbers):
            return numbers
        limits = (0, _SECONDS_BELOW, _MILLISECONDS_BELOW, _MICROSECONDS_BELOW)
        least, most = np.searchsorted(limits, (numbers.min(), numbers.max()), side="right")
        if least == most:
            return self._in_unit(int(least) - 1, numbers, billionths)
        units = np.searchsorted(limits, numbers, side="right") - 1
        billionths = np.broadcast_to(billionths, numbers.shape)
        times = np.empty_like(numbers)
        for unit in range(len(limits)):
            is_it = units == unit
            times[is_it] = self._in_unit(unit, numbers[is_it], billionths[is_it])
        return times

    def _in_unit(self, unit: int, numbers: Ints, billionths: Ints) -> Ints:
        """Convert numbers of seconds (0), milliseconds (1) and so on to microseconds."""
        factor = (1_000_000, 1000, 1, 0)[unit]
        if not factor:
            self.is_truncated |= bool((numbers % 1000).any() or billionths.any())
            return numbers // 1000
        parts = billionths * factor
        self.is_truncated |= bool((parts % 1_000_000_000).any())
        return numbers * factor + parts // 1_000_000_000

    def _compact(self, texts: pa.StringArray) -> Ints:
        return self._iso(pc.replace_substring_regex(texts, *_COMPACT_PARTS))

    def _iso(self, texts: pa.StringArray) -> Ints:
        try:
            return _to_utc(texts.cast(_US), self._zone)
        except pa.ArrowException:
            pass
        try:  # Arrow accepts offsets in either all values or none
            return _ints(texts.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()))
        except pa.ArrowException:
            pass
        for pattern, text in _ISO_SPELLINGS:
            texts = pc.replace_substring_regex(texts, pattern, text)
        has_offset = pc.match_substring_regex(texts, _OFFSET)
        parts = [(has_offset, self._with_offset), (pc.invert(has_offset), self._local)]
        return _by_part(texts, parts)

    def _with_offset(self, texts: pa.StringArray) -> Ints:
        return _ints(self._cast(texts, "UTC").cast(pa.int64()))

    def _local(self, texts: pa.StringArray) -> Ints:
        return _to_utc(self._cast(texts, None), self._zone)

    def _cast(self, texts: pa.StringArray, zone: str | None) -> pa.TimestampArray:
        """Parse ISO times with 0 to 9 decimals."""
        try:
            return texts.cast(pa.timestamp("us", tz=zone))
        except pa.ArrowException:
            pass
        try:
            exact = texts.cast(pa.timestamp("ns", tz=zone))
        except pa.ArrowException as exc:
            raise Unfit("is not a time like 2024-08-08T23:55:48.056", Cause.BAD_TIME) from exc
        nanoseconds = _ints(exact.cast(pa.int64()))
        self.is_truncated |= bool((nanoseconds % 1000).any())
        return pa.array(nanoseconds // 1000).cast(pa.timestamp("us", tz=zone))

    def _formatted(self, parts: Sequence[pa.StringArray]) -> Ints:
        times = self._by_patterns(parts[0], self._rule.date_formats)
        if len(parts) > 1:
            times = times + self._clock(parts[1], self._rule.time_format)
        if len(times) and (times.min() < 0 or times.max() > YEAR_9999_US):
            raise Unfit("is out of the years 1970 to 9999", Cause.TIME_OUT_OF_RANGE)
        return _to_utc(pa.array(times).cast(_US), self._zone)

    def _clock(self, texts: pa.StringArray, pattern: str) -> Ints:
        """Parse times of day: common formats with Arrow, others by their format."""
        shortest = pc.min(pc.binary_length(texts)).as_py() or 0
        if pattern in _CLOCK and shortest >= _SHORTEST_CLOCK:
            days = pc.binary_join_element_wise("1970-01-01", texts, " ")
            try:
                return _ints(days.cast(_US).cast(pa.int64()))
            except pa.ArrowException:
                pass
        return self._by_patterns(texts, (pattern,))

    def _by_patterns(self, texts: pa.StringArray, patterns: Sequence[str]) -> Ints:
        """Parse texts in strptime formats; a column in one format of digits with Arrow."""
        for pattern in patterns:
            template = _template(pattern)
            if template and pc.all(pc.match_substring_regex(texts, template[0])).as_py():
                try:
                    iso = pc.replace_substring_regex(texts, *template)
                    iso = pc.replace_substring_regex(iso, r"\.$", "")
                    return _ints(self._cast(iso, None).cast(pa.int64()))
                except Unfit:
                    continue
        encoded = texts.dictionary_encode()
        moments = [self._parse(text, patterns) for text in encoded.dictionary.to_pylist()]
        values: Ints = np.array(moments, dtype=np.int64)
        codes: Ints = encoded.indices.to_numpy()
        return values[codes]

    def _parse(self, text: str, patterns: Sequence[str]) -> int:
        for pattern in patterns:
            for variant in _variants(pattern):
                has_date = any(f"%{mark}" in variant for mark in _DATE_MARKS)
                prefix, before = ("", "") if has_date else ("1970-01-01 ", "%Y-%m-%d ")
                short = _LONG_FRACTION.sub(r"\1", text) if "%f" in variant else text
                try:
                    whole = f"{prefix}{short} +0000"
                    moment = datetime.strptime(whole, f"{before}{variant} %z")
                except ValueError:
                    continue
                self.is_truncated |= short != text
                delta = moment - _EPOCH
                return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds
        raise Unfit(f"is not a date or time like {' or '.join(patterns)}", Cause.BAD_TIME)


def _plausible() -> tuple[int, int]:
    """Return the first microsecond of 1990 and the last of next year."""
    first = datetime(1990, 1, 1, tzinfo=UTC)
    end = datetime(datetime.now(UTC).year + 2, 1, 1, tzinfo=UTC)
    return int(first.timestamp()) * 1_000_000, int(end.timestamp()) * 1_000_000 - 1


def _year(moment_us: int) -> int:
    return datetime.fromtimestamp(moment_us // 1_000_000, tz=UTC).year


def _by_part(
    texts: pa.StringArray,
    parts: Sequence[tuple[pa.BooleanArray, Callable[[pa.StringArray], Ints]]],
) -> Ints:
    """Parse each part of a column with its own function; the masks are disjoint."""
    for mask, read in parts:
        if pc.all(mask).as_py():
            return read(texts)
    times = np.empty(len(texts), dtype=np.int64)
    for mask, read in parts:
        if pc.any(mask).as_py():
            times[mask.to_numpy(zero_copy_only=False)] = read(texts.filter(mask))
    return times


def _template(pattern: str) -> tuple[str, str] | None:
    """Translate a format of digits to a regular expression and its ISO replacement."""
    expression, groups = "", []
    for directive, text in _PARTS.findall(pattern):
        if text:
            expression += re.escape(text)
        elif directive in _DIRECTIVES and directive not in groups:
            groups.append(directive)
            expression += _DIRECTIVES[directive]
        else:
            return None
    if "S" in groups and "f" in groups:
        expression = expression.replace(r"\.([0-9]{0,9})", r"(?:\.([0-9]{1,9}))?")
    group_of = {directive: f"\\{number}" for number, directive in enumerate(groups, start=1)}
    days = [group_of.get(part, "") for part in "Ymd"]
    if not all(days):
        if any(days):
            return None
        days = ["1970", "01", "01"]
    clock = [group_of.get(part, "00") for part in "HMS"]
    fraction = f".{group_of['f']}" if "f" in group_of else ""
    return f"^{expression}$", f"{'-'.join(days)} {':'.join(clock)}{fraction}"


def _variants(pattern: str) -> Sequence[str]:
    """Yield a format and, if it has fractions, its variant for whole seconds."""
    if "%S.%f" in pattern:
        return pattern, pattern.replace("%S.%f", "%S")
    return (pattern, pattern.replace("%S%f", "%S")) if "%S%f" in pattern else (pattern,)


def _to_utc(local: pa.TimestampArray, zone: str) -> Ints:
    if zone == "UTC":
        return _ints(local.cast(pa.int64()))
    try:
        moments = pc.assume_timezone(local, zone, ambiguous="earliest", nonexistent="raise")
    except pa.ArrowException as exc:
        reason = f"does not exist in {zone}: clocks went forward"
        raise Unfit(reason, Cause.NONEXISTENT_TIME) from exc
    return _ints(moments.cast(pa.int64()))


def _ints(column: pa.Array) -> Ints:
    return np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.int64)
