"""Permissions of the files that k2 creates, and where it does not create any.

The home folder and its contents are accessible only to their owner, unless `[home] shared = true`;
files elsewhere, such as answers and rejects, get the permissions of the user's umask. The libraries
that write the embedded tables follow neither rule, so the process gets a private umask, too, when
they write to the home folder.

No file is created through a dangling link: in a folder that others can write to, it could have been
planted to redirect k2's output.
"""

import errno
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import BinaryIO, Final

from k2cli.errors import BadData, ConfigError, K2Error, NotFound, Unavailable, UsageError

STDIN: Final = "-"  # where a file is named
Opener = Callable[[str, int], int]
# Permanent errors: the name of the file is wrong.
_LASTING: Final = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.EEXIST, errno.ENOTDIR}
)
_PRIVATE_UMASK = 0o077
_DANGLING = "it is a link to a file that does not exist"


@dataclass(frozen=True, slots=True)
class _Access:
    home: Path | None = None  # the private one
    umask: int | None = None  # the user's, once the process has a private one


_access = _Access()  # of this process


def protect_home(home: Path, *, is_shared: bool, is_store: bool) -> None:
    """Create files in the home folder as owner-only from now on, unless it is shared.

    `is_store` means that libraries write tables there, and nowhere else. Call it before starting
    threads: the umask applies to the whole process.
    """
    global _access  # noqa: PLW0603
    umask = os.umask(_PRIVATE_UMASK) if _access.umask is None else _access.umask
    os.umask(umask | _PRIVATE_UMASK if is_store and not is_shared else umask)
    _access = _Access(None if is_shared else _plain(home), umask)


def opener(path: str, flags: int) -> int:
    """Open a file with the right permissions; for `open(..., opener=opener)`.

    Raises:
        OSError: it cannot be opened, or is a dangling link.
    """
    if not flags & os.O_CREAT:
        return os.open(path, flags)
    try:
        return _create(path, flags)
    except FileExistsError:
        if flags & os.O_EXCL:
            raise
    try:
        return os.open(path, flags & ~os.O_CREAT)
    except FileNotFoundError as exc:
        if _is_dangling(Path(path)):
            raise FileNotFoundError(errno.ENOENT, _DANGLING, path) from exc
        raise


def private_opener(path: str, flags: int) -> int:
    """Open a file that only its owner can read."""
    return os.open(path, flags, 0o600)


def existing_opener(path: str, flags: int) -> int:
    """Open a device or a pipe, but never create a file instead."""
    return os.open(path, flags & ~os.O_CREAT)


def make_folder(path: Path) -> None:
    """Create a folder and its parents with the right permissions.

    Raises:
        OSError: it cannot be created, or is a file.
    """
    missing = list(takewhile(lambda each: not each.exists(), (path, *path.parents)))
    for folder in reversed(missing):
        is_private = _is_private(folder)
        folder.mkdir(0o700 if is_private else 0o777, exist_ok=True)
        if not is_private and _access.umask is not None:
            with suppress(PermissionError):  # of a file system without permissions
                folder.chmod(0o777 & ~_access.umask)
    path.mkdir(exist_ok=True)


def replace_file(path: Path, text: str) -> None:
    """Write a file atomically, creating its folder.

    Raises:
        OSError: it cannot be written; an existing file is unchanged.
    """
    make_folder(path.parent)
    with replaced(path, is_forced=True) as sink:
        sink.write(text.encode())


def open_input(path: str | Path) -> AbstractContextManager[BinaryIO]:
    """Open a file that the user named for reading; `-` is stdin, which stays open.

    Raises:
        NotFound: it does not exist.
        UsageError: it is a directory.
        ConfigError: it cannot be read.
    """
    if str(path) == STDIN:
        return nullcontext(sys.stdin.buffer)
    with reading(path):
        return Path(path).open("rb")


@contextmanager
def reading(path: str | Path, *, what: str = "") -> Iterator[None]:
    """Translate what the system raises for a file that is read; `what` names its role.

    Raises:
        NotFound: it does not exist.
        UsageError: it is a directory.
        ConfigError: it cannot be read.
    """
    name = f"{what} {path}".strip()
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise NotFound(f"{name} does not exist") from exc
    except IsADirectoryError as exc:
        raise UsageError(f"{name} is a directory", hint="name the files in it") from exc
    except OSError as exc:
        if exc.errno is None:  # of a decompressor
            raise BadData(f"{name} cannot be read: {exc}") from exc
        raise ConfigError(f"{name} cannot be read: {exc.strerror}") from exc


@contextmanager
def opened_for_writing(path: Path, *, is_forced: bool) -> Iterator[BinaryIO]:
    """Open the file of an answer: new, replaced, or a device or pipe.

    Raises:
        UsageError: it exists and is not to be replaced, or may not be written.
        Unavailable: the disk failed or is full.
    """
    try:
        if path.exists() and not path.is_file():
            with open(path, "wb", opener=existing_opener) as sink:
                yield sink
        else:
            with replaced(path, is_forced=is_forced) as sink:
                yield sink
    except BrokenPipeError:
        raise
    except OSError as exc:
        raise writing_error(path, exc) from exc


def write_private(path: Path, text: str, *, is_forced: bool) -> None:
    """Write a file that may contain secrets, owner-only and atomically.

    Raises:
        UsageError: it exists, or may not be written.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a directory", hint="-o needs the name of a file")
    refuse_dangling_link(path)
    try:
        make_folder(path.parent)
        with replaced(path, is_forced=is_forced, opener=private_opener) as sink:
            sink.write(text.encode())
    except OSError as exc:
        raise writing_error(path, exc) from exc


@contextmanager
def replaced(path: Path, *, is_forced: bool, opener: Opener = opener) -> Iterator[BinaryIO]:
    """Open a new file that replaces `path` once it is complete.

    If `path` is a link, its target is replaced.

    Raises:
        UsageError: the file exists, and `is_forced` is off.
        OSError: it cannot be written.
    """
    target = path.resolve()
    temporary = target.with_name(f".k2-{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb", opener=opener) as sink:
            yield sink
            sink.flush()
            os.fsync(sink.fileno())
        if is_forced:
            temporary.replace(target)
        else:
            os.link(temporary, target)  # unlike a rename, this fails if the file exists
    except FileExistsError as exc:
        raise already_exists(path) from exc
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """Make the names of a folder's new files durable.

    Raises:
        OSError: the folder cannot be opened or synchronized.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def already_exists(path: Path) -> UsageError:
    """Return the error for a file that must not be replaced."""
    return UsageError(f"{path} already exists", hint="use --force to replace it")


def writing_error(path: Path | None, exc: OSError) -> K2Error:
    """Translate a system error for a file named by the user; None is stdout."""
    message = f"cannot write {path or 'to stdout'}: {exc.strerror or exc}"
    if exc.errno in _LASTING:
        return UsageError(message, hint="choose another file with -o")
    return Unavailable(message)


def refuse_dangling_link(path: Path) -> None:
    """Refuse a file named by the user if it is a dangling link.

    Raises:
        UsageError: it is one.
    """
    if _is_dangling(path):
        raise UsageError(
            f"{path} is a link to a file that does not exist",
            hint="remove the link, or give the path of the file",
        )


def _create(path: str, flags: int) -> int:
    is_private = _is_private(Path(path))
    descriptor = os.open(path, flags | os.O_EXCL, 0o600 if is_private else 0o666)
    if not is_private and _access.umask is not None:
        with suppress(PermissionError):  # of a file system without permissions
            os.fchmod(descriptor, 0o666 & ~_access.umask)
    return descriptor


def _is_dangling(path: Path) -> bool:
    return path.is_symlink() and not path.exists()


def _is_private(path: Path) -> bool:
    return _access.home is not None and _plain(path).is_relative_to(_access.home)


def _plain(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100  links must stay: resolving follows them
