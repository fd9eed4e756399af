"""`k2 load csv` of files that grow: new complete lines only, each once."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from k2cli.config import Settings
from k2cli.errors import Conflict
from k2cli.flow import Batch
from k2cli.ingestion.csv.layout import load_layout
from k2cli.ingestion.csv.source import CsvOptions, read_csv
from k2cli.pipelines.conflicts import ConflictReport
from k2cli.pipelines.load.job import FileToLoad, LoadPolicy, Progress
from k2cli.pipelines.load.tables import load_into_tables
from k2cli.pipelines.pump import Allowance
from k2cli.records import TRADES
from k2cli.rejects import RejectLog
from k2cli.storage.lake import open_lake
from support.foreign import forget_everything
from support.running import K2, Result, k2_at

GENERIC = ["--layout", "generic-trades", "--exchange", "X", "--asset-class", "crypto"]
BINANCE = ["--layout", "binance-trades"]
HEADER = "symbol,timestamp,price,quantity,side,currency\n"


def lines(first: int, count: int) -> str:
    return "".join(
        f"A,{1_723_161_348_000 + n},1.5,{n},buy,USD\n" for n in range(first, first + count)
    )


def sequenced_lines(first: int, count: int) -> str:
    return lines(first, count).replace(",1.5,", ",1.5,7,")


@pytest.fixture
def k2(home: Path) -> K2:
    return k2_at(home)


@pytest.fixture
def follow(k2: K2, growing: Path) -> K2:
    """Load the file's new lines; return the sums."""

    def run_follow(*args: str, code: int = 0) -> Any:
        options = (*GENERIC, "--follow-appends", "--summary", "json", *args)
        return k2("load", "csv", growing, *options, code=code)

    return run_follow


@pytest.fixture
def growing(tmp_path: Path) -> Path:
    path = tmp_path / "growing.csv"
    path.write_text(HEADER + lines(1, 3))
    return path


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def rows_in(result: Result) -> int:
    return int(json.loads(result.stdout)["rows"])


def stored(settings: Settings, column: str = "quantity") -> list[Any]:
    with open_lake(settings) as lake:
        found = lake.open(TRADES).iceberg.scan().to_arrow()
    return [row[column] for row in sorted(found.to_pylist(), key=lambda row: row["quantity"])]


def history(k2: K2) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(k2("load", "history", "--format", "json").stdout)
    return found


def test_only_new_lines_are_loaded_each_once(
    k2: K2, follow: K2, growing: Path, settings: Settings
) -> None:
    assert rows_in(follow()) == 3
    first_size = growing.stat().st_size
    append(growing, lines(4, 2))
    second = follow()
    assert (rows_in(second), rows_in(follow())) == (2, 0)
    assert stored(settings) == [1, 2, 3, 4, 5]
    part, whole = history(k2)
    assert (whole["offset_bytes"], whole["size_bytes"], whole["rows"]) == (0, first_size, 3)
    assert part["offset_bytes"] == first_size
    assert part["size_bytes"] == growing.stat().st_size
    assert part["digest"] == hashlib.sha256(growing.read_bytes()).hexdigest()
    assert part["rows"] == 2


def test_parts_have_the_row_numbers_of_the_whole_and_ids_of_their_own(
    follow: K2, growing: Path, settings: Settings
) -> None:
    for n in range(4, 7):
        follow()
        append(growing, lines(n, 1))
    follow()
    assert [text.rpartition("-")[2] for text in stored(settings, "trade_id")] == list("123456")
    assert len(set(stored(settings, "message_id"))) == 6


def test_ids_are_the_same_in_every_table(
    k2: K2, growing: Path, tmp_path: Path, settings: Settings
) -> None:
    homes = [settings.home, tmp_path / "other"]
    for home in homes:
        growing.write_text(HEADER + lines(1, 3))
        k2("load", "csv", growing, *GENERIC, "--follow-appends", "--home", home)
        append(growing, lines(4, 2))
        k2("load", "csv", growing, *GENERIC, "--follow-appends", "--home", home)
    first, second = (stored(Settings(home=home), "message_id") for home in homes)
    assert first == second


def test_line_without_its_end_is_left_for_the_next_run(
    follow: K2, growing: Path, settings: Settings
) -> None:
    append(growing, "A,1723161348004,1.5,4")
    assert rows_in(follow()) == 3
    assert rows_in(follow()) == 0
    append(growing, "0,buy,USD\n")
    assert rows_in(follow()) == 1
    assert stored(settings) == [1, 2, 3, 40]


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["newline", "crlf"])
def test_whole_file_without_a_last_line_end_can_be_followed(
    k2: K2, follow: K2, growing: Path, settings: Settings, end: str
) -> None:
    growing.write_bytes(
        (HEADER + lines(1, 3)).replace("\n", end).encode().removesuffix(end.encode())
    )
    k2("load", "csv", growing, *GENERIC)
    assert rows_in(follow()) == 0
    with growing.open("ab") as file:
        file.write((end + lines(4, 1)).encode())
    assert rows_in(follow()) == 1
    assert stored(settings) == [1, 2, 3, 4]


def test_last_line_that_was_loaded_and_went_on_is_refused(
    k2: K2, follow: K2, growing: Path, settings: Settings
) -> None:
    growing.write_text(HEADER + lines(1, 3).removesuffix("\n"))
    k2("load", "csv", growing, *GENERIC)
    append(growing, "T\n")
    assert "last line was incomplete" in follow(code=6).stderr
    assert len(stored(settings)) == 3


@pytest.mark.parametrize(
    "start", ["", HEADER, HEADER[:10]], ids=["empty", "header", "half-a-header"]
)
def test_file_that_begins_empty_or_with_its_header_alone(
    follow: K2, growing: Path, settings: Settings, start: str
) -> None:
    growing.write_text(start)
    assert rows_in(follow()) == 0
    growing.write_text(HEADER + lines(1, 2))
    assert rows_in(follow()) == 2
    assert stored(settings) == [1, 2]


def test_file_without_header_is_followed(k2: K2, tmp_path: Path, settings: Settings) -> None:
    path = tmp_path / "BTCUSDT-trades-2024-08-08.csv"
    for count in (2, 5):
        path.write_text(
            "".join(
                f"{n},1.5,{n},1,{1_723_161_348_000 + n},True,True\n" for n in range(1, count + 1)
            )
        )
        k2("load", "csv", path, *BINANCE, "--follow-appends")
    assert stored(settings, "source_sequence") == [1, 2, 3, 4, 5]
    assert stored(settings, "message_id")[4] == "4a9ae213-a5ed-8ce5-8000-000000000005"


def test_reject_in_a_part_is_told_by_its_line_in_the_file(
    follow: K2, growing: Path, home: Path, settings: Settings
) -> None:
    follow()
    append(growing, lines(4, 1) + "bad\n")
    assert "line 6: has 1 columns, not 6" in follow(code=6).stderr
    assert len(stored(settings)) == 3
    (reject,) = (home / "rejects" / "load-csv.ndjson").read_text().splitlines()
    assert json.loads(reject)["position"] == 6
    growing.write_text(growing.read_text().replace("bad\n", lines(5, 1)))
    assert rows_in(follow()) == 2


@pytest.mark.parametrize("text", [HEADER + lines(7, 9), HEADER + lines(1, 2), ""])
def test_rewritten_or_shortened_file_is_refused(
    follow: K2, growing: Path, settings: Settings, text: str
) -> None:
    follow()
    growing.write_text(text)
    result = follow(code=6)
    assert "was rewritten" in result.stderr
    assert "--force" in result.stderr
    assert stored(settings) == [1, 2, 3]


def test_forced_load_of_a_rewritten_file_is_followed_from_there(
    follow: K2, growing: Path, settings: Settings
) -> None:
    follow()
    growing.write_text(HEADER + lines(7, 2) + "A,17")
    assert rows_in(follow("--force")) == 2
    append(growing, lines(9, 1)[4:])
    assert rows_in(follow()) == 1
    assert stored(settings) == [1, 2, 3, 7, 8, 9]


def test_grown_file_is_refused_without_the_option(
    k2: K2, follow: K2, growing: Path, settings: Settings
) -> None:
    k2("load", "csv", growing, *GENERIC)
    append(growing, lines(4, 1))
    result = k2("load", "csv", growing, *GENERIC, code=6)
    assert "has grown since it was last loaded" in result.stderr
    assert "--follow-appends" in result.stderr
    assert rows_in(follow()) == 1
    assert stored(settings) == [1, 2, 3, 4]


def test_rewritten_file_is_a_new_file_without_the_option(
    k2: K2, growing: Path, settings: Settings
) -> None:
    k2("load", "csv", growing, *GENERIC)
    growing.write_text(HEADER + lines(4, 1))
    k2("load", "csv", growing, *GENERIC)
    assert stored(settings) == [1, 2, 3, 4]


def test_rollback_makes_the_lines_count_as_not_loaded(
    follow: K2, growing: Path, settings: Settings
) -> None:
    follow()
    with open_lake(settings) as lake:
        first = lake.open(TRADES).iceberg.current_snapshot()
        assert first is not None
        append(growing, lines(4, 2))
        follow()
        with lake.open(TRADES).iceberg.manage_snapshots() as manage:
            manage.rollback_to_snapshot(first.snapshot_id)
    assert stored(settings) == [1, 2, 3]
    assert rows_in(follow()) == 2
    assert stored(settings) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("name", "args", "said"),
    [
        ("-", [], "stdin is not a file"),
        ("x.csv.gz", [], "is compressed"),
        ("growing.csv", ["--dry-run"], "only into the table"),
        ("growing.csv", ["--to", "stdout"], "only into the table"),
    ],
)
def test_what_cannot_be_followed_is_a_usage_error(
    k2: K2, growing: Path, name: str, args: list[str], said: str
) -> None:
    path = growing.parent / name
    if name.endswith(".gz"):
        path.write_bytes(b"\x1f\x8b")
    source = name if name == "-" else path
    result = k2("load", "csv", source, *GENERIC, "--follow-appends", *args, code=2)
    assert said in result.stderr


def test_file_may_grow_while_it_is_read(follow: K2, growing: Path, settings: Settings) -> None:
    growing.write_text(HEADER + lines(1, 200_000))
    writer = subprocess.Popen(
        [
            *(sys.executable, "-c"),
            "import sys, time\n"
            "for n in range(200_001, 10**9):\n"
            "    with open(sys.argv[1], 'a') as file:\n"
            "        file.write(f'A,1723161348000,1.5,{n},buy,USD\\n')\n"
            "    time.sleep(0.0005)\n",
            str(growing),
        ]
    )
    try:
        for _ in range(3):
            follow()
    finally:
        writer.kill()
        writer.wait()
    follow()
    complete = growing.read_text().count("\n") - 1
    assert stored(settings) == list(range(1, complete + 1))


def test_two_that_follow_one_file_at_once_load_no_line_twice(
    growing: Path, settings: Settings, tmp_path: Path
) -> None:
    def file() -> FileToLoad:
        layout = load_layout("generic-trades")
        options = CsvOptions(exchange="X", asset_class="crypto")
        reader = read_csv(growing, layout, options)
        return FileToLoad(path=str(growing), layout="generic-trades", kind=TRADES, reader=reader)

    with (
        open_lake(settings, create=True) as lake,
        RejectLog(tmp_path / "rejects", run="") as rejects,
    ):
        policy = LoadPolicy(
            rejects=rejects,
            conflicts=ConflictReport(lambda *_, **__: None),
            allowance=Allowance(),
            is_following=True,
        )
        is_first = True

        def load(on_batch: Callable[[Batch], None] = lambda _: None) -> None:
            progress: Progress = lambda _: nullcontext(on_batch)  # noqa: E731
            assert len(list(load_into_tables([file()], lake, policy, progress))) == 1

        def other_is_faster(_: Batch) -> None:
            nonlocal is_first
            if is_first:
                is_first = False
                append(growing, lines(4, 1))
                load()

        with pytest.raises(Conflict, match="meanwhile"):
            load(other_is_faster)
        load()
    assert stored(settings) == [1, 2, 3, 4]


@pytest.mark.parametrize("is_large", [False, True], ids=["in a group", "alone"])
def test_lines_that_a_table_may_have_are_refused_where_its_log_was_lost(
    growing: Path, k2: K2, settings: Settings, monkeypatch: pytest.MonkeyPatch, is_large: bool
) -> None:
    """The file's lines were stored as those of shorter files: their ids do not tell."""
    # A sequence number alone identifies no trade: several trades of a message may share it.
    growing.write_text(HEADER.replace("quantity", "source_sequence,quantity"))
    append(growing, sequenced_lines(1, 3))
    load = ("load", "csv", growing, *GENERIC)
    k2(*load)
    append(growing, sequenced_lines(4, 3))
    k2(*load, "--follow-appends")
    with open_lake(settings) as lake:
        forget_everything(lake.open(TRADES).iceberg)
    append(growing, sequenced_lines(7, 2))
    if is_large:
        monkeypatch.setattr("k2cli.storage.fileload._FILE_ROWS", 1)
    for options in ([], ["--follow-appends"]):
        refused = k2(*load, *options, code=6)
        assert f"cannot load {growing}" in refused.stderr
        assert "may be stored already" in refused.stderr
        assert "use --force to store the missing lines" in refused.stderr
    assert stored(settings) == list(range(1, 7))
    forced = json.loads(k2("load", "csv", growing, *GENERIC, "--force", "--summary", "json").stdout)
    assert (forced["rows"], forced["duplicates"]) == (2, 6)
    append(growing, sequenced_lines(9, 1))
    assert rows_in(k2(*load, "--follow-appends", "--summary", "json")) == 1
    assert stored(settings) == list(range(1, 10))


def test_another_file_is_loaded_where_the_log_of_loads_was_lost(
    growing: Path, k2: K2, follow: K2, settings: Settings, tmp_path: Path
) -> None:
    follow()
    with open_lake(settings) as lake:
        forget_everything(lake.open(TRADES).iceberg)
    other = tmp_path / "other.csv"
    other.write_text(HEADER + lines(11, 3))
    assert rows_in(k2("load", "csv", other, *GENERIC, "--summary", "json")) == 3
    again = k2("load", "csv", growing, *GENERIC, "--allow-duplicates", "--summary", "json")
    assert rows_in(again) == 0  # The same file as it was: its ids are stored.
