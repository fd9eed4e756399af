"""Who may read the files that k2 creates, and where it creates none.

The home folder and what is in it are for its owner only, unless `[home] shared = true`; files
elsewhere, such as answers and rejects, have the permissions that the user's umask gives them.
The libraries that write the embedded tables know neither rule, so that the umask of the process
is a private one as well where they write to the home folder.

No file is created at the end of a link that leads nowhere: in a folder that others can write to,
it could have been planted to make k2 write somewhere else.
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

from k2cli.errors import ConfigError, K2Error, NotFound, Unavailable, UsageError

STDIN: Final = "-"  # where a file is named
Opener = Callable[[str, int], int]
# What does not go away by itself: the name of the file is wrong.
_LASTING: Final = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.EEXIST, errno.ENOTDIR}
)
_PRIVATE_UMASK = 0o077
_DANGLING = "it is a link to a file that does not exist"


@dataclass(frozen=True, slots=True)
class _Access:
    home: Path | None = None  # the private one
    umask: int | None = None  # the user's, once the process has another


_access = _Access()  # of this process


def protect_home(home: Path, *, is_shared: bool, is_store: bool) -> None:
    """Keep what is created in the home folder from now on to its owner, unless it is shared.

    `is_store` says that libraries write tables there, and nowhere else. To be called before
    there are threads: the umask is one of the whole process.
    """
    global _access  # noqa: PLW0603
    umask = os.umask(_PRIVATE_UMASK) if _access.umask is None else _access.umask
    os.umask(umask | _PRIVATE_UMASK if is_store and not is_shared else umask)
    _access = _Access(None if is_shared else _plain(home), umask)


def opener(path: str, flags: int) -> int:
    """Open a file with the permissions that are right for it; for `open(..., opener=opener)`.

    Raises:
        OSError: it cannot be opened, or is a link that leads nowhere.
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
    """Open a file that only its owner can read, wherever it is."""
    return os.open(path, flags, 0o600)


def existing_opener(path: str, flags: int) -> int:
    """Open a device or a pipe, but never create a file in its place."""
    return os.open(path, flags & ~os.O_CREAT)


def make_folder(path: Path) -> None:
    """Create a folder, and those above it, with the permissions that are right for them.

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
    """Write a file, and the folder that it is in, whole or not at all.

    Raises:
        OSError: it cannot be written; what was there stays.
    """
    make_folder(path.parent)
    with replaced(path, is_forced=True) as sink:
        sink.write(text.encode())


def open_input(path: str | Path) -> AbstractContextManager[BinaryIO]:
    """Open a file that the user named for reading; `-` is stdin, which stays open.

    Raises:
        NotFound: it does not exist.
        UsageError: it is a folder.
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
        UsageError: it is a folder.
        ConfigError: it cannot be read.
    """
    name = f"{what} {path}".strip()
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise NotFound(f"{name} does not exist") from exc
    except IsADirectoryError as exc:
        raise UsageError(f"{name} is a folder", hint="name the files in it") from exc
    except OSError as exc:
        raise ConfigError(f"{name} cannot be read: {exc.strerror or exc}") from exc


@contextmanager
def opened_for_writing(path: Path, *, is_forced: bool) -> Iterator[BinaryIO]:
    """Open the file of an answer: a new one, one to replace, or a device or a pipe.

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
    """Write a file that may hold secrets: for its owner only, all or nothing.

    Raises:
        UsageError: it exists, or may not be written.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder", hint="-o takes the name of a file")
    refuse_dangling_link(path)
    try:
        make_folder(path.parent)
        with replaced(path, is_forced=is_forced, opener=private_opener) as sink:
            sink.write(text.encode())
    except OSError as exc:
        raise writing_error(path, exc) from exc


@contextmanager
def replaced(path: Path, *, is_forced: bool, opener: Opener = opener) -> Iterator[BinaryIO]:
    """Open a new file that replaces `path` when all is written, or never.

    If that is a link, the file that it leads to is replaced.

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
            os.link(temporary, target)  # unlike a rename, refuses when the file exists
    except FileExistsError as exc:
        raise already_exists(path) from exc
    finally:
        temporary.unlink(missing_ok=True)


def already_exists(path: Path) -> UsageError:
    """Make the error of a file that is not to be replaced."""
    return UsageError(f"{path} exists", hint="--force replaces it")


def writing_error(path: Path | None, exc: OSError) -> K2Error:
    """Translate what the system says of a file that the user named; None is stdout."""
    message = f"cannot write {path or 'to stdout'}: {exc.strerror or exc}"
    if exc.errno in _LASTING:
        return UsageError(message, hint="choose another file with -o")
    return Unavailable(message)


def refuse_dangling_link(path: Path) -> None:
    """Refuse a file that the user named, if it is a link that leads nowhere.

    Raises:
        UsageError: it is one.
    """
    if _is_dangling(path):
        raise UsageError(
            f"{path} is a link to a file that does not exist",
            hint="remove the link, or name the file itself",
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
