"""Recordings as batches of rows, through the parser of the exchange's live stream."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from k2cli.errors import BadData
from k2cli.flow import Batch
from k2cli.ingestion.bursts import CHUNK_FRAMES, NOTICE_MAX_BYTES
from k2cli.ingestion.exchange import Parser, Venue
from k2cli.ingestion.recordings import OnDamage, RecordingReader, decode_line, decode_lines
from k2cli.rejects import Cause, Fault, Reject

_UNTIMED: Final = Fault(
    reason="the line does not start with a receive time", cause=Cause.MISSING, column="received"
)


class OtherMarket(BadData):
    """A recording has frames of another market."""


@dataclass(slots=True)
class _Lines:
    """Decoded lines of a recording: frames with their receive times and line numbers."""

    frames: list[bytes]
    received_us: list[int]
    numbers: Sequence[int]
    untimed: list[tuple[int, bytes]]


class RecordedFrames:
    """The frames of a recording, parsed: iterate once. Rejects have their line numbers.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(
        self,
        path: Path,
        *,
        venue: Venue,
        parser: Parser,
        on_damage: OnDamage,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._path = path
        self._venue = venue
        self._parser = parser
        self._now_us = now_us
        self._reader = RecordingReader(path, on_damage)
        self._is_checked = False  # whether its frames belong to this market

    @property
    def size_bytes(self) -> int:
        """Size of the file."""
        return self._reader.size_bytes

    @property
    def bytes_read(self) -> int:
        """How many bytes of the file were read so far."""
        return self._reader.bytes_read

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches in the order of the recording.

        Raises:
            OtherMarket: the frames are of another market.
            OSError: the disk failed.
        """
        first = 1
        for lines in self._reader:
            for start in range(0, len(lines), CHUNK_FRAMES):
                some = lines[start : start + CHUNK_FRAMES]
                yield self._batch(self._decode(some, first))
                first += len(some)

    def _decode(self, lines: Sequence[bytes], first: int) -> _Lines:
        """Decode lines; shutdown notices are not data, as in a live stream."""
        notice = self._venue.shutdown_notice
        together = decode_lines(lines)
        if together is not None and not (notice and any(notice in f for f in together[1])):
            received_us = [time_ns // 1000 for time_ns in together[0]]
            return _Lines(together[1], received_us, range(first, first + len(lines)), [])
        return self._decode_one_by_one(lines, first)

    def _decode_one_by_one(self, lines: Sequence[bytes], first: int) -> _Lines:
        decoded, numbers = _Lines([], [], [], []), list[int]()
        notice = self._venue.shutdown_notice
        for number, line in enumerate(lines, first):
            received_ns, frame = decode_line(line)
            if received_ns is None:
                if frame:
                    decoded.untimed.append((number, line))
            elif not (notice and len(frame) < NOTICE_MAX_BYTES and notice in frame):
                decoded.frames.append(frame)
                decoded.received_us.append(received_ns // 1000)
                numbers.append(number)
        decoded.numbers = numbers
        return decoded

    def _batch(self, lines: _Lines) -> Batch:
        self._check_market(lines.frames)
        parsed = self._parser.parse(lines.frames, lines.received_us, first=0)
        file = str(self._path)
        rejects = [
            replace(reject, position=lines.numbers[reject.position], file=file)
            for reject in parsed.rejects
        ]
        rejects += [
            Reject(fault=_UNTIMED, raw=line, position=number, received_us=self._now_us(), file=file)
            for number, line in lines.untimed
        ]
        return Batch(
            rows=parsed.rows,
            rejects=sorted(rejects, key=lambda reject: reject.position),
            messages=len(lines.frames) + len(lines.untimed),
            seen=parsed.seen,
        )

    def _check_market(self, frames: Sequence[bytes]) -> None:
        """Check the first frame that shows its market."""
        if self._is_checked:
            return
        fits = next((each for each in map(self._venue.fits, frames) if each is not None), None)
        if fits is False:
            raise OtherMarket(
                f"{self._path} has frames of another market than {self._venue.exchange}",
                hint="choose the market with --market",
            )
        self._is_checked = fits is True
