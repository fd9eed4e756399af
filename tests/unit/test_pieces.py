"""Answers in pieces are the same bytes as those of one query."""

import io
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from k2cli.answers import LakeReader
from k2cli.config import QuerySettings, load_settings
from k2cli.errors import Unavailable
from k2cli.query.answer import Answer
from k2cli.query.engine import Session, open_session
from k2cli.query.formats import Format, write_answer
from k2cli.query.pieces import LargeAnswer
from k2cli.query.protocol import AnyAnswer
from k2cli.query.questions import select_rows
from k2cli.query.selection import Selection
from k2cli.query.timespan import Timespan
from k2cli.records import TRADES
from support.builders import START, Row, table_of, trade_row
from support.tablefiles import write_files

PIECE_ROWS = 40
SELECTIONS = {
    "everything": Selection(),
    "descending": Selection(is_descending=True),
    "one symbol": Selection(symbols=["ETHUSDT"]),
    "some columns": Selection(columns=["price", "trade_conditions", "vendor_data"]),
    "a span": Selection(span=Timespan(START + timedelta(seconds=9), START + timedelta(seconds=50))),
    "nothing": Selection(symbols=["XRPUSDT"]),
    "limit 0": Selection(limit=0),
    "a limit within the first piece": Selection(limit=3),
    "a limit within a later piece": Selection(limit=133, is_descending=True),
    "a limit that is never reached": Selection(limit=10_000),
}
FORMS = [(form, True) for form in (Format.CSV, Format.TSV, Format.JSON, Format.NDJSON)]


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """Open a session over overlapping files with many trades at the same times."""
    rng = random.Random(7)
    rows = [trade(rng, number) for number in range(400)]
    rng.shuffle(rows)
    with session_over(tmp_path_factory.mktemp("files"), rows[:100], rows[100:]) as opened:
        yield opened


@contextmanager
def session_over(folder: Path, *files: list[Row]) -> Iterator[Session]:
    plan = write_files(folder, TRADES, *(table_of(TRADES, rows) for rows in files))
    with open_session(QuerySettings(threads=2), [plan], zone="Asia/Tokyo") as opened:
        yield opened


def trade(rng: random.Random, number: int) -> Row:
    return trade_row(
        message_id=f"{number:036d}",
        timestamp=START + timedelta(seconds=rng.randrange(60), microseconds=rng.choice([0, 1])),
        symbol=rng.choice(["BTCUSDT", "ETHUSDT"]),
        source_sequence=rng.choice([None, 1, 2]),
        trade_conditions=rng.choice([[], ['a,"b"', "c\td\n"]]),
        vendor_data=rng.choice([None, {"note": "line\nend"}]),
    )


def written(answer: AnyAnswer, form: Format, *, has_header: bool) -> tuple[bytes, int]:
    sink = io.BytesIO()
    rows = write_answer(answer, form, sink, has_header=has_header)
    return sink.getvalue(), rows


@pytest.mark.parametrize("selection", SELECTIONS.values(), ids=SELECTIONS)
@pytest.mark.parametrize(("form", "has_header"), [*FORMS, (Format.CSV, False)])
def test_pieces_are_the_whole(
    session: Session, selection: Selection, form: Format, has_header: bool
) -> None:
    whole = written(session.ask(select_rows(TRADES, selection)), form, has_header=has_header)
    pieces = session.ask_rows_of(TRADES, selection, piece_rows=PIECE_ROWS)
    assert written(pieces, form, has_header=has_header) == whole


@pytest.mark.parametrize(
    ("selection", "least"), [(Selection(), 8), (Selection(symbols=["ETHUSDT"]), 4)]
)
def test_pieces_have_about_the_wanted_rows(
    session: Session, selection: Selection, least: int
) -> None:
    spans = session.ask_rows_of(TRADES, selection, piece_rows=PIECE_ROWS).spans()
    assert least <= len(spans) <= 400 / PIECE_ROWS


def test_trades_at_one_time_are_one_piece(tmp_path: Path) -> None:
    rows = [trade_row(message_id=f"{number:036d}") for number in range(100)]
    with session_over(tmp_path, rows) as session:
        answer = session.ask_rows_of(TRADES, Selection(), piece_rows=10)
        assert len(answer.spans()) == 1
        assert written(answer, Format.CSV, has_header=True)[1] == 100


def test_cancelling_between_two_pieces_ends_the_answer(session: Session) -> None:
    answer = session.ask_rows_of(TRADES, Selection(), piece_rows=PIECE_ROWS)

    class Cancelling(io.BytesIO):
        def flush(self) -> None:
            session.is_cancelled = True  # the first piece is written

    sink = Cancelling()
    try:
        with pytest.raises(Unavailable, match="cancelled"):
            answer.copy("ndjson", sink)
    finally:
        session.is_cancelled = False
    assert 0 < sink.getvalue().count(b"\n") < 100


@pytest.mark.parametrize(
    ("rows", "limit", "kind"),
    [
        (1_000_000, None, Answer),
        (1_000_001, None, LargeAnswer),
        (2_000_000, 10, Answer),
        (2_000_000, 0, Answer),
        (2_000_000, 1_500_000, LargeAnswer),
    ],
)
def test_only_large_selections_are_cut(
    tmp_path: Path, rows: int, limit: int | None, kind: type[Answer]
) -> None:
    plan = replace(write_files(tmp_path, TRADES, table_of(TRADES, [trade_row()])), rows=rows)
    with (
        LakeReader(load_settings({"K2_HOME": str(tmp_path)})) as reader,
        reader.rows_of(plan, Selection(limit=limit)).open() as opened,
    ):
        assert type(opened) is kind
