"""Files that users name: opening them, and what is said of those that cannot be opened."""

import errno
import os
import sys
from contextlib import suppress
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest

from k2cli.errors import ConfigError, K2Error, NotFound, Unavailable, UsageError
from k2cli.files import open_input, opened_for_writing, reading, replaced


def test_a_dash_is_stdin_and_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    stdin = TextIOWrapper(BytesIO(b"rows"))
    monkeypatch.setattr(sys, "stdin", stdin)
    with open_input("-") as stream:
        assert stream.read() == b"rows"
    assert not stdin.closed


@pytest.mark.parametrize(
    ("code", "error", "text"),
    [
        (errno.ENOENT, NotFound, "reference x does not exist"),
        (errno.ENOTDIR, NotFound, "reference x does not exist"),
        (errno.EISDIR, UsageError, "reference x is a directory"),
        (errno.EACCES, ConfigError, "reference x cannot be read: Permission denied"),
        (errno.EIO, ConfigError, "reference x cannot be read: Input/output error"),
    ],
    ids=["missing", "below-a-file", "folder", "permission", "damaged-disk"],
)
def test_reading_errors_say_what_is_wrong(code: int, error: type[K2Error], text: str) -> None:
    with pytest.raises(error) as caught, reading("x", what="reference"):
        raise OSError(code, os.strerror(code))
    assert str(caught.value) == text


def test_inputs_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        open_input(tmp_path / "no")
    with pytest.raises(UsageError, match="is a directory"):
        open_input(tmp_path)
    (tmp_path / "a").write_bytes(b"1")
    with open_input(tmp_path / "a") as stream:
        assert stream.read() == b"1"


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with suppress(RuntimeError), replaced(path, is_forced=True) as sink:
        sink.write(b"half")
        raise RuntimeError
    assert (path.read_bytes(), len(list(tmp_path.iterdir()))) == (b"old", 1)
    with pytest.raises(UsageError, match="exists"), replaced(path, is_forced=False) as sink:
        sink.write(b"new")
    assert (path.read_bytes(), len(list(tmp_path.iterdir()))) == (b"old", 1)
    with replaced(path, is_forced=True) as sink:
        sink.write(b"new")
    assert path.read_bytes() == b"new"


def test_writing_errors_say_whether_a_retry_makes_sense(tmp_path: Path) -> None:
    for code, error in ((errno.ENOSPC, Unavailable), (errno.EROFS, UsageError)):
        with (
            pytest.raises(error, match="cannot write"),
            opened_for_writing(tmp_path / "a", is_forced=False),
        ):
            raise OSError(code, os.strerror(code))
    assert list(tmp_path.iterdir()) == []
