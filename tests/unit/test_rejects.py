"""What became no row is kept as it came."""

import base64
import errno
import json
import os
import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from k2cli.errors import ConfigError, Unavailable
from k2cli.rejects import Cause, Fault, Reject, RejectLog
from support.waiting import PATIENCE_S


def reject(raw: bytes, position: int = 1) -> Reject:
    fault = Fault(reason="not a frame", cause=Cause.BAD_FRAME)
    return Reject(fault=fault, raw=raw, position=position, received_us=1_723_161_348_000_007)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_reject_is_a_line_with_reason_position_time_and_raw(tmp_path: Path) -> None:
    path = tmp_path / "rejects.ndjson"
    with RejectLog(path, run="") as log:
        log.write([reject(b'{"p": 1}', position=17)])
    assert lines(path) == [
        {
            "reason": "not a frame",
            "code": "bad_frame",
            "cause": "bad_frame",
            "position": 17,
            "received": "2024-08-08T23:55:48.000007Z",
            "raw": '{"p": 1}',
        }
    ]


@pytest.mark.parametrize(
    "raw",
    [b"", b"a\nb\r\n", b"\x00", "€ \u2028 🂡".encode(), b'"\\ud800"', b'"\\n"'],
    ids=["empty", "line-ends", "nul", "beyond-latin", "escaped-surrogate", "escaped-newline"],
)
def test_raw_text_comes_back_byte_for_byte(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "rejects.ndjson"
    with RejectLog(path, run="") as log:
        log.write([reject(raw), reject(b"next")])
    first, second = path.read_bytes().splitlines()
    assert json.loads(first)["raw"].encode() == raw
    assert json.loads(second)["raw"] == "next"


@pytest.mark.parametrize(
    "raw", [b"\xff\xfe{\x00\x80}", b"\xed\xa0\x80"], ids=["random-bytes", "encoded-surrogate"]
)
def test_raw_that_is_not_utf8_is_kept_in_base64(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "rejects.ndjson"
    with RejectLog(path, run="") as log:
        log.write([reject(raw)])
    (line,) = lines(path)
    assert base64.b64decode(line["raw_base64"]) == raw
    assert "raw" not in line


def test_key_and_headers_of_a_message_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "rejects.ndjson"
    headers = [("a", b"1"), ("a", b"\xff"), ("b", None), ("", b"")]
    plain = reject(b"")
    with RejectLog(path, run="") as log:
        log.write([replace(plain, is_null=True, key=b"\xfe", headers=headers)])
        log.write([replace(plain, key=b"")])
    first, second = lines(path)
    assert first["raw"] is None
    assert base64.b64decode(first["key_base64"]) == b"\xfe"
    assert first["headers"] == [
        {"name": "a", "value": "1"},
        {"name": "a", "value_base64": "/w=="},
        {"name": "b", "value": None},
        {"name": "", "value": ""},
    ]
    assert (second["raw"], second["key"]) == ("", "")
    assert "headers" not in second


def test_reason_with_any_text_is_written(tmp_path: Path) -> None:
    path = tmp_path / "rejects.ndjson"
    reason = "error: \ud800 \n \x00"
    with RejectLog(path, run="") as log:
        fault = Fault(reason=reason, cause=Cause.BAD_FRAME)
        log.write([Reject(fault=fault, raw=b"", position=1, received_us=0)])
    (line,) = lines(path)
    assert "error: " in line["reason"]


def test_file_and_folders_are_made_with_the_first_reject(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "rejects.ndjson"
    with RejectLog(path, run="") as log:
        log.sync()
        assert not path.parent.exists()
        log.write([reject(b"1")])
        assert path.exists()


def test_rejects_of_an_earlier_run_stay(tmp_path: Path) -> None:
    path = tmp_path / "rejects.ndjson"
    for raw in (b"1", b"2"):
        with RejectLog(path, run="") as log:
            log.write([reject(raw)])
    assert [line["raw"] for line in lines(path)] == ["1", "2"]


def test_synced_rejects_are_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "rejects.ndjson"
    with RejectLog(path, run="") as log:
        log.write([reject(b"1")])
        log.sync()
        assert len(lines(path)) == 1


def test_folder_that_cannot_be_made_is_a_wrong_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "rejects.ndjson"
    with (
        pytest.raises(ConfigError, match=r"rejects\.ndjson") as caught,
        RejectLog(path, run="") as log,
    ):
        log.write([reject(b"1")])
    assert "--rejects" in str(caught.value.hint)


def test_folder_in_place_of_the_file_is_a_wrong_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="directory"), RejectLog(tmp_path, run="") as log:
        log.write([reject(b"1")])


def write_and_sync(log: RejectLog, raw: bytes) -> None:
    log.write([reject(raw)])
    log.sync()


@pytest.mark.parametrize("size", [1, 1_000_000])  # fails at the sync, or at the write
def test_full_disk_is_unavailable_and_closing_is_quiet(size: int) -> None:
    with RejectLog(Path("/dev/full"), run="") as log:
        with pytest.raises(Unavailable, match="No space left"):
            write_and_sync(log, b"x" * size)
        with pytest.raises(Unavailable, match="No space left"):
            log.sync()


def test_device_that_cannot_be_synced_is_no_error() -> None:
    with RejectLog(Path("/dev/null"), run="") as log:
        write_and_sync(log, b"1")


def test_line_that_was_cut_off_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "rejects.ndjson"
    path.write_bytes(b'{"reason": "whole"}\n{"reason": "cut')
    with RejectLog(path, run="") as log:
        log.write([reject(b"1")])
    whole, _, added = path.read_text().splitlines()
    assert (json.loads(whole)["reason"], json.loads(added)["raw"]) == ("whole", "1")


def test_file_size_limit_is_unavailable(tmp_path: Path) -> None:
    """In a process of its own, because the limit is the process's."""
    code = (
        "import sys; from pathlib import Path\n"
        "from k2cli.errors import Unavailable\n"
        "from k2cli.rejects import Cause, Fault, Reject, RejectLog\n"
        "fault = Fault(reason='r', cause=Cause.BAD_FRAME)\n"
        "reject = Reject(fault=fault, raw=b'x' * 5000, position=1, received_us=0)\n"
        "with RejectLog(Path(sys.argv[1]), run='') as log:\n"
        "    try:\n"
        "        log.write([reject]); log.sync()\n"
        "    except Unavailable as exc:\n"
        "        print(exc)\n"
    )

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))

    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "rejects.ndjson")],
        preexec_fn=limit,
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_S,
    )
    assert os.strerror(errno.EFBIG) in done.stdout
