"""Recordings: lines, names, files and damage, without a stream."""

import base64
import gzip
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2cli.errors import NotFound
from k2cli.ingestion import recordings
from k2cli.ingestion.recordings import (
    Damage,
    Recorded,
    RecordingReader,
    decode_line,
    decode_lines,
    encode_frames,
    find_recordings,
    market_of,
    read_recordings,
    zstd_packer,
)
from k2cli.simulator.recording import PlayClock, Recording
from support.recordings import no_damage

zstd_frame = zstd_packer()
NOW_NS = 1_768_312_800_123_456_789
HOSTILE = [
    b"",
    b"\n",
    b"\r",
    b"{}\r\n",
    b"=",
    b"=e30=",
    b" leading",
    b"\xff\xfe\x00",
    b"1768312800123456789 {}",
    b"#",
    bytes(range(256)),
]


def lines_of(numbers: Sequence[int]) -> bytes:
    return b"".join(encode_frames([b'{"n":%d}' % number], NOW_NS + number) for number in numbers)


def numbers_in(frames: Sequence[Recorded]) -> list[int]:
    return [int(recorded.frame[5:-1]) for recorded in frames]


def read(path: Path) -> tuple[list[Recorded], list[Damage]]:
    damages: list[Damage] = []
    return list(read_recordings(path, damages.append)), damages


# --- lines


@given(st.lists(st.binary(max_size=40) | st.sampled_from(HOSTILE), min_size=1, max_size=20))
def test_every_byte_survives(frames: list[bytes]) -> None:
    text = encode_frames(frames, NOW_NS)
    assert text.count(b"\n") == len(frames)
    decoded = [decode_line(line) for line in text.removesuffix(b"\n").split(b"\n")]
    assert decoded == [Recorded(NOW_NS, frame) for frame in frames]
    together = decode_lines(text.removesuffix(b"\n").split(b"\n"))
    assert together is None or together == ([NOW_NS] * len(frames), frames)


def test_usual_lines_are_decoded_together() -> None:
    lines = [b"1768312800123456789 {}", b"1768312800123456790 [ ]", b"0000000000000000005 "]
    assert decode_lines(lines) == ([NOW_NS, NOW_NS + 1, 5], [b"{}", b"[ ]", b""])
    for unusual in (b"", b"1768312800123456789", b"1768312800123 {}", b"{}", b"x" * 30):
        assert decode_lines([*lines, unusual]) is None


def test_usual_frames_are_readable() -> None:
    text = encode_frames([b'{"e":"trade"}', b"[]"], NOW_NS)
    assert text == b'1768312800123456789 {"e":"trade"}\n1768312800123456789 []\n'


def test_times_before_2001_have_19_digits_too() -> None:
    assert decode_line(encode_frames([b"x"], 5)[:-1]) == Recorded(5, b"x")


@pytest.mark.parametrize(
    ("line", "recorded"),
    [
        (b"1768312800 {}", Recorded(1_768_312_800_000_000_000, b"{}")),
        (b"1768312800123 {}", Recorded(1_768_312_800_123_000_000, b"{}")),
        (b"1768312800123456 {}\r", Recorded(1_768_312_800_123_456_000, b"{}")),
        (b"1768312800123456789 =?", Recorded(NOW_NS, b"=?")),
        (b"17683128001 {}", Recorded(None, b"17683128001 {}")),
        (b"1_7683128001 {}", Recorded(None, b"1_7683128001 {}")),
        (b"1768312800123456789", Recorded(None, b"1768312800123456789")),
        (b'{"a": 1}\r', Recorded(None, b'{"a": 1}')),
        (b"=e30=", Recorded(None, b"=e30=")),
    ],
)
def test_lines_of_other_programs_are_decoded(line: bytes, recorded: Recorded) -> None:
    assert decode_line(line) == recorded


def test_market_is_in_the_name() -> None:
    name = "binance-usdm-20260113T140000Z-6b1f0c9d52ae7e34-0001.frames.zst"
    assert market_of(Path("/x", name)) == ("binance", "usdm")
    assert market_of(Path("spot_BTCUSDT.ndjson")) is None


# --- files


def packed(path: Path, content: bytes) -> Path:
    pack: dict[str, Callable[[bytes], bytes]] = {
        ".gz": gzip.compress,
        ".zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
    }
    path.write_bytes(pack.get(path.suffix, bytes)(content))
    return path


@pytest.mark.parametrize("name", ["f.ndjson", "f.ndjson.gz", "f.frames.zst"])
def test_files_are_read_plain_and_compressed(tmp_path: Path, name: str) -> None:
    path = packed(tmp_path / name, b"1721347021186954583 {1}\r\n{2}\n\n{3}")
    frames, damages = read(path)
    assert [recorded.frame for recorded in frames] == [b"{1}", b"{2}", b"{3}"]
    assert not damages


@pytest.mark.parametrize("name", ["big", "big.gz", "big.zst"])
def test_lines_cross_block_borders(tmp_path: Path, name: str) -> None:
    lines = [b'{"n":%d,"pad":"%s"}' % (n, b"x" * 90) for n in range(30_000)]
    frames, damages = read(packed(tmp_path / name, b"\n".join(lines)))
    assert [recorded.frame for recorded in frames] == lines
    assert not damages


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".zst", zstd_frame)])
def test_appended_parts_are_all_read(
    tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / f"f{suffix}"
    path.write_bytes(b"".join(pack(lines_of([n])) for n in range(500)))
    frames, damages = read(path)
    assert numbers_in(frames) == list(range(500))
    assert not damages


@pytest.mark.parametrize("name", ["f.zst", "f.gz", "f.frames"])
def test_an_empty_file_has_no_frames(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert read(tmp_path / name) == ([], [])


def test_a_folder_is_read_in_the_order_of_the_names(tmp_path: Path) -> None:
    (tmp_path / "b.frames.zst").write_bytes(zstd_frame(lines_of([2, 3])))
    (tmp_path / "a.frames").write_bytes(lines_of([0, 1]))
    (tmp_path / "notes.txt").write_text("not a recording")
    (tmp_path / "a.frames.zst.part").write_text("nor this")
    frames, damages = read(tmp_path)
    assert numbers_in(frames) == [0, 1, 2, 3]
    assert not damages


def test_a_folder_without_recordings_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a recording")
    with pytest.raises(NotFound, match="has no recordings"):
        find_recordings(tmp_path)
    with pytest.raises(NotFound, match="does not exist"):
        find_recordings(tmp_path / "missing")


# --- damage


def three_parts(path: Path) -> tuple[bytes, int, int]:
    """Write three zstd frames; return them, and where the second begins and ends."""
    parts = [zstd_frame(lines_of(range(n, n + 100))) for n in (0, 100, 200)]
    path.write_bytes(b"".join(parts))
    return b"".join(parts), len(parts[0]), len(parts[0]) + len(parts[1])


def test_a_damaged_zstd_frame_costs_only_its_own_lines(tmp_path: Path) -> None:
    """Some bits, such as those of the window's size, make no difference."""
    path = tmp_path / "f.frames.zst"
    data, start, end = three_parts(path)
    harmless = 0
    for position in range(start, end, 3):
        for flip in (0x01, 0x80):
            broken = bytearray(data)
            broken[position] ^= flip
            path.write_bytes(broken)
            frames, damages = read(path)
            if damages:
                assert numbers_in(frames) == [*range(100), *range(200, 300)], position
                assert [damage.position for damage in damages] == [start], position
            else:
                assert numbers_in(frames) == list(range(300)), position
                harmless += 1
    assert harmless < 5


def test_a_file_that_is_cut_off_is_read_up_to_there(tmp_path: Path) -> None:
    path = tmp_path / "f.frames.zst"
    data, start, end = three_parts(path)
    for size in range(start + 1, len(data), 7):
        path.write_bytes(data[:size])
        frames, damages = read(path)
        numbers = numbers_in(frames)
        assert numbers == list(range(len(numbers)))
        assert len(numbers) >= (100 if size < end else 200)
        if size == end:
            assert not damages
        else:
            assert damages == [Damage(path, start if size < end else end, "it is cut off")]


def test_a_gzip_file_that_is_cut_off_is_read_up_to_there(tmp_path: Path) -> None:
    path = tmp_path / "f.gz"
    data = gzip.compress(lines_of(range(100_000)), 1)
    path.write_bytes(data[: len(data) // 2])
    frames, damages = read(path)
    assert numbers_in(frames) == list(range(len(frames)))
    assert 10_000 < len(frames) < 100_000
    assert [damage.reason for damage in damages] == ["it is cut off"]


def test_text_that_claims_to_be_compressed_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "f.zst"
    path.write_bytes(lines_of([1]))
    frames, damages = read(path)
    assert not frames
    assert [(damage.path, damage.position) for damage in damages] == [(path, 0)]


def test_a_line_cut_off_at_the_end_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "f.frames"
    path.write_bytes(lines_of([1]) + b'1768312800123456789 {"n":')
    frames, damages = read(path)
    assert [recorded.frame for recorded in frames] == [b'{"n":1}', b'{"n":']
    assert not damages


def test_endless_lines_take_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordings, "_MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(recordings, "_BLOCK_BYTES", 300)
    path = tmp_path / "f.frames"
    path.write_bytes(lines_of([1]) + b"x" * 10_000 + b"\n" + lines_of([2]))
    frames, damages = read(path)
    assert numbers_in(frames) == [1, 2]
    assert [damage.reason for damage in damages] == ["a line of more than 1000 B"]


def test_frames_of_any_size_are_read_from_zstd(tmp_path: Path) -> None:
    """Larger than what is held back until the checksum, and incompressible."""
    frame = base64.b64encode(os.urandom(16 << 20))
    path = tmp_path / "f.zst"
    path.write_bytes(zstd_frame(encode_frames([frame[: 18 << 20]] * 2 + [b"end"], NOW_NS)))
    frames, damages = read(path)
    assert [len(recorded.frame) for recorded in frames] == [18 << 20, 18 << 20, 3]
    assert not damages


def test_progress_is_in_bytes_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "f.frames.zst"
    data, *_ = three_parts(path)
    reader = RecordingReader(path, no_damage)
    assert (reader.size_bytes, reader.bytes_read) == (len(data), 0)
    list(reader)
    assert reader.bytes_read == len(data)


@pytest.mark.parametrize("block_bytes", [5, 64])
def test_the_next_zstd_frame_is_found_across_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    monkeypatch.setattr(recordings, "_BLOCK_BYTES", block_bytes)
    path = tmp_path / "f.zst"
    for gap in range(20):
        path.write_bytes(b"x" * gap + zstd_frame(lines_of([1, 2])))
        frames, damages = read(path)
        assert numbers_in(frames) == [1, 2]
        assert len(damages) == (gap > 0)


# --- playing at a pace


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def due_times(times_s: Sequence[float], *, speed: float = 1.0) -> list[float]:
    """When each frame is sent, of a recording with these receive times."""
    clock = Clock()
    play = PlayClock(speed, clock)
    sent = []
    for time_s in times_s:
        while not play.is_due(NOW_NS + round(time_s * 1e9)):
            clock.now_s += 0.25
        sent.append(clock.now_s)
    return sent


def test_recordings_play_at_their_own_pace() -> None:
    assert due_times([0, 0, 1, 1.5, 4]) == [0, 0, 1, 1.5, 4]


def test_recordings_play_faster() -> None:
    assert due_times([0, 5, 10, 20], speed=10) == [0, 0.5, 1, 2]


@pytest.mark.parametrize(
    ("times_s", "sent"),
    [
        pytest.param([0, 1, -3600, -3599, -3598], [0, 1, 1, 2, 3], id="set-back"),
        pytest.param([10, 11, 5, 12, 13], [0, 1, 1, 2, 3], id="one-wrong-time"),
        pytest.param([0, 90_000, 1, 2], [0, 60, 60, 61], id="far-ahead-once"),
        pytest.param([0, 7200, 7201], [0, 60, 61], id="long-pause"),
        pytest.param([3600, 0, 3601, 1, 3602, 2], [0, 0, 1, 1, 2, 2], id="two-clocks"),
    ],
)
def test_clocks_that_go_backwards_neither_hang_nor_race(
    times_s: list[float], sent: list[float]
) -> None:
    assert due_times(times_s) == sent


def test_a_slow_reader_does_not_catch_up() -> None:
    clock = Clock()
    play = PlayClock(1.0, clock)
    assert play.is_due(NOW_NS)
    clock.now_s = 100.0
    assert play.is_due(NOW_NS + 1_000_000_000)
    assert not play.is_due(NOW_NS + 60_000_000_000)


def test_a_paced_recording_keeps_frames_that_are_not_due(tmp_path: Path) -> None:
    trades = [b'{"e":"trade","s":"BTCUSDT","t":%d}' % number for number in range(3)]
    text = b"".join(encode_frames([f], NOW_NS + n * 10**9) for n, f in enumerate(trades))
    (tmp_path / "f.frames").write_bytes(text)
    clock = Clock()
    recording = Recording(tmp_path, is_combined=False, pace=PlayClock(1.0, clock))
    recording.follow(["btcusdt@trade"])
    assert recording.take(10, 0) == trades[:1]
    assert recording.take(10, 0) == []
    assert not recording.is_at_end
    clock.now_s = 1.0
    assert recording.take(10, 0) == trades[1:2]
    clock.now_s = 2.0
    assert recording.take(10, 0) == trades[2:]
    recording.take(10, 0)
    assert recording.is_at_end
