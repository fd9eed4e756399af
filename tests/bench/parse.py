"""Frames into record batches on one core, against decoding the same frames and nothing else."""

import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
from processes import SYMBOLS, check_equal
from report import Aim, Line, Setup

from k2cli.ingestion.binance import protocol
from k2cli.ingestion.binance.protocol import FrameParser
from k2cli.ingestion.binance.venues import VENUES, Channel
from k2cli.ingestion.symbols import Market, parse_symbol
from k2cli.simulator.market import SyntheticMarket

_CHUNK: Final = 4096  # frames, as the client parses them
_CHUNKS: Final = 25
_START_US: Final = 1_723_111_200_000_000
_INSTRUMENTS: Final = [parse_symbol(symbol, Market.SPOT) for symbol in SYMBOLS]

Chunks = Sequence[Sequence[bytes]]


def run(setup: Setup) -> list[Line]:
    """Parse trades, and quotes."""
    rounds = 5 if setup.is_quick else 15
    return [_compare(channel, rounds) for channel in (Channel.TRADE, Channel.BOOK_TICKER)]


def _compare(channel: Channel, rounds: int) -> Line:
    """Measure in turns; the best round counts on both sides."""
    chunks = _frames(channel)
    parsed, decoded = [], []
    for _ in range(rounds):
        parsed.append(_frames_per_s(_parse, chunks))
        decoded.append(_frames_per_s(_decode, chunks))
    return Line(
        what=f"{channel.value} frames into batches of {_CHUNK}",
        value=max(parsed),
        unit="frames/s",
        reference=max(decoded),
        against="msgspec decoding them into the same structs",
        aim=Aim("ratio", ">=", 0.25),
        samples=parsed,
        reference_samples=decoded,
    )


def _frames(channel: Channel) -> Chunks:
    """Take chunks of frames of ten symbols from the synthetic market."""
    play = SyntheticMarket(first_id=3_700_000_000).play(is_combined=True, is_micros=True)
    play.follow([VENUES[Market.SPOT].stream_name(each, channel) for each in _INSTRUMENTS])
    return [play.take(_CHUNK, _START_US + 50_000 * number) for number in range(_CHUNKS)]


def _frames_per_s(work: Callable[[Chunks], int], chunks: Chunks) -> float:
    """Time the work in seconds of CPU, over all threads: what one core alone would take."""
    started = time.process_time()
    count = work(chunks)
    took_s = time.process_time() - started
    check_equal(count, _CHUNK * _CHUNKS)
    return count / took_s


def _parse(chunks: Chunks) -> int:
    parser = FrameParser(venue=VENUES[Market.SPOT], instruments=_INSTRUMENTS)
    received_us = [_START_US] * _CHUNK
    rows = 0
    for number, chunk in enumerate(chunks):
        parsed = parser.parse(chunk, received_us, first=1 + number * _CHUNK)
        rows += sum(batch.num_rows for _, batch in parsed.rows)
    return rows


def _decode(chunks: Chunks) -> int:
    decode = msgspec.json.Decoder(protocol._Envelope).decode
    for chunk in chunks:
        for frame in chunk:
            decode(frame)
    return sum(map(len, chunks))
