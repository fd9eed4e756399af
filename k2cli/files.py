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
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from k2cli.errors import UsageError

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
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    try:
        with open(temporary, "w", encoding="utf-8", opener=opener) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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
