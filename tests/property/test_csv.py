"""No file, however damaged, crashes the reader: each line is one row or one reject."""

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from k2cli.ingestion.csv.layout import load_layout
from k2cli.ingestion.csv.source import CsvOptions, read_csv

OPTIONS = CsvOptions(symbol="BTCUSDT", exchange="X", asset_class="crypto", currency="EUR")
HEADERS = {
    "binance-trades": b"",
    "asx-trades": b"",
    "asx-quotes": b"",
    "generic-trades": b"timestamp,price,quantity,side,source_sequence,note\n",
    "generic-quotes": b"time,bid,bid_size,ask,ask_size,id\n",
}
GOOD = {
    "binance-trades": b"3735685016,61800.12000000,0.00010000,6.18,1723161348055,True,True",
    "asx-trades": b"03/10/2014,13:50:38.849,1.11,3667,0,,",
    "asx-quotes": b"03/10/2014,05:46:13.604,1.11,0.0,10300,0",
    "generic-trades": b'2024-08-08T10:00:00Z,1.5,2,sell,7,"a, ""b"""',
    "generic-quotes": b"2024-08-08 10:00,1.5,2,1.6,3,77",
}
CELLS = st.sampled_from(
    [
        *(b"", b"-1", b"1e5", b"0.123456789", b"99999999999", b"nan", b"-0", b"9" * 19, b"9" * 40),
        *(b"02/30/2014", b"10/05/2014", b"02:30:00.000", b"24:00:00", b"12/31/9999", b"0"),
        *(b"1969-12-31", b"9999-12-31T23:59:59.999999", b"2024-08-08T10:00:00+02:00", b"True"),
        *(b"1723104000", b"253402300800000", b'"', b'""', b'"x', b'x"', b'"x"y', b'"x""'),
        *(b" 1", b"\xff", b"\xc3\xa9", b"\0", b"\r", b"\t", b"\xef\xbb\xbf"),
    ]
)


@st.composite
def damaged_line(draw: st.DrawFn, good: bytes) -> bytes:
    """A line with cells replaced, or bytes flipped, inserted or deleted; without a line feed."""
    line = good
    if draw(st.booleans()):
        cells = line.split(b",")
        place = draw(st.integers(0, len(cells) - 1))
        cells[place] = draw(CELLS | st.binary(max_size=6))
        line = b",".join(cells)
    for _ in range(draw(st.integers(0, 2))):
        data = bytearray(line)
        place = draw(st.integers(0, max(len(data) - 1, 0)))
        how = draw(st.sampled_from(["flip", "insert", "delete"]))
        if how == "insert":
            data[place:place] = draw(CELLS | st.binary(max_size=3))
        elif how == "delete":
            del data[place : place + draw(st.integers(1, 9))]
        elif data:
            data[place] ^= 1 << draw(st.integers(0, 7))
        line = bytes(data)
    return line.replace(b"\n", b"")


@st.composite
def damaged_file(draw: st.DrawFn) -> tuple[str, list[bytes], bytes]:
    """A layout, and the lines of a file of which the first is good; and what ends each line."""
    layout = draw(st.sampled_from(sorted(GOOD)))
    good = GOOD[layout]
    lines = draw(st.lists(st.just(good) | damaged_line(good), max_size=80))
    return layout, [good, *lines], draw(st.sampled_from([b"\n", b"\r\n"]))


def verdicts(layout: str, lines: list[bytes], end: bytes) -> tuple[int, list[tuple[int, bytes]]]:
    """Read lines as a file: the number of rows, and place and text of the rejects."""
    header = HEADERS[layout]
    rows = messages = 0
    rejects: list[tuple[int, bytes]] = []
    with tempfile.NamedTemporaryFile(suffix=".csv") as file:
        file.write(header + b"".join(line + end for line in lines))
        file.flush()
        for batch in read_csv(Path(file.name), load_layout(layout), OPTIONS):
            messages += batch.messages
            for kind, found in batch.rows:
                assert found.schema.equals(kind.arrow)
                found.validate(full=True)
                rows += found.num_rows
            rejects += [(r.position - 1 - bool(header), r.raw) for r in batch.rejects]
            assert all(reject.reason for reject in batch.rejects)
    assert messages == rows + len(rejects)
    return rows, rejects


@given(damaged_file())
@settings(max_examples=150, deadline=None)
def test_every_line_is_one_row_or_one_reject(file: tuple[str, list[bytes], bytes]) -> None:
    layout, lines, end = file
    rows, rejects = verdicts(layout, lines, end)
    blank = sum(line in (b"", b"\r") for line in lines)
    assert rows + len(rejects) + blank == len(lines)
    places = [place for place, _ in rejects]
    assert places == sorted(set(places))
    for place, raw in rejects:
        assert raw == (lines[place] + end).removesuffix(b"\n").removesuffix(b"\r")


@given(damaged_file())
@settings(max_examples=50, deadline=None)
def test_a_line_fares_among_others_as_it_does_alone(file: tuple[str, list[bytes], bytes]) -> None:
    layout, lines, end = file
    _, rejects = verdicts(layout, lines, end)
    bad = {place for place, _ in rejects}
    for place, line in list(enumerate(lines))[1:9]:
        _, alone = verdicts(layout, [lines[0], line], end)
        assert bool(alone) == (place in bad), line


@given(st.sampled_from(sorted(GOOD)), st.binary(max_size=300))
@settings(max_examples=100, deadline=None)
def test_any_bytes_after_a_good_line_are_rows_or_rejects(layout: str, data: bytes) -> None:
    rows, rejects = verdicts(layout, [GOOD[layout], *data.split(b"\n")], b"\n")
    assert rows >= 1
    assert rows + len(rejects) <= 2 + data.count(b"\n")


Outcome = tuple[list[dict[str, object]], list[tuple[int, bytes, str]]]


def outcome(path: Path, layout: str, done: int) -> tuple[Outcome, int]:
    """Follow a file from `done` on: rows but for what is a load's own, rejects, and how far."""
    rows: list[dict[str, object]] = []
    rejects: list[tuple[int, bytes, str]] = []
    source = read_csv(path, load_layout(layout), OPTIONS)
    source.expect_growth()
    source.follow(done)
    for batch in source:
        for _, found in batch.rows:
            rows += found.drop_columns(["message_id", "ingestion_timestamp"]).to_pylist()
        rejects += [(each.position, each.raw, each.reason) for each in batch.rejects]
    return (rows, rejects), source.size_bytes


@given(damaged_file(), st.sets(st.integers(0, 3_000), max_size=6))
@settings(max_examples=100, deadline=None)
def test_a_file_that_is_followed_has_the_rows_of_the_whole(
    file: tuple[str, list[bytes], bytes], sizes: set[int]
) -> None:
    layout, lines, end = file
    data = HEADERS[layout] + b"".join(line + end for line in lines)
    rows, rejects = [], []
    done = 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "7078.csv")
        for size in sorted({*sizes, len(data)}):
            path.write_bytes(data[:size])
            (more_rows, more_rejects), done = outcome(path, layout, done)
            rows += more_rows
            rejects += more_rejects
        assert ((rows, rejects), done) == outcome(path, layout, 0)
