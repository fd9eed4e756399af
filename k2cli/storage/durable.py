"""Files that survive a power cut: on disk before a commit refers to them.

pyiceberg and k2 write data files, manifests, manifest lists and metadata files through a `FileIO`.
A metadata file refers to all the others, and the catalog's pointer to it changes once it is closed.
So closing one first puts everything written before on disk, the names of new folders too. This
takes a third of the time of synchronizing each file by itself. The pointer is in SQLite, which
synchronizes it.
"""

import io
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final, cast

from pyarrow.fs import FileSystem
from pyiceberg.io import OutputStream
from pyiceberg.io.pyarrow import PyArrowFile, PyArrowFileIO

DURABLE_IO: Final = f"{__name__}.DurableFileIO"  # as a catalog's py-io-impl
_METADATA: Final = ".metadata.json"
_BUFFER_BYTES: Final = 1 << 20
_THREADS: Final = 8  # disks complete several requests together


class DurableFileIO(PyArrowFileIO):
    """Puts local files on disk before the metadata file that refers to them is complete."""

    def new_output(self, location: str) -> PyArrowFile:
        """Return a file to create; see `PyArrowFileIO.new_output`."""
        scheme, netloc, path = self.parse_location(location, self.properties)
        if scheme != "file":  # object stores do this on their own
            return super().new_output(location)
        _, _, warehouse = self.parse_location(self.properties.get("warehouse", path))
        return _DurableFile(location, path, self.fs_by_scheme(scheme, netloc), Path(warehouse))


class _DurableFile(PyArrowFile):
    def __init__(self, location: str, path: str, fs: FileSystem, warehouse: Path) -> None:
        super().__init__(location=location, path=path, fs=fs)
        self._local = Path(path)
        self._warehouse = warehouse

    def create(self, overwrite: bool = False) -> OutputStream:
        """Create the file.

        Raises:
            FileExistsError: it exists, and `overwrite` is false.
            OSError: it cannot be created.
        """
        _UNSYNCED.make_folder(self._local.parent, self._warehouse)
        stream = io.BufferedWriter(_Output(self._local, "wb" if overwrite else "xb"), _BUFFER_BYTES)
        return cast("OutputStream", stream)


class _Output(io.FileIO):
    """A file that is synchronized with the next metadata file, or now if it is one."""

    def __init__(self, path: Path, mode: str) -> None:
        super().__init__(path, mode)
        self._path = path

    def close(self) -> None:
        if self.closed:
            return
        super().close()
        _UNSYNCED.add(self._path)
        if self._path.name.endswith(_METADATA):
            _UNSYNCED.sync()


class _Unsynced:
    """The files and folders that were written, but may not be on disk; for all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._paths: set[Path] = set()
        self._folders: set[Path] = set()  # folders whose names are on disk, or among the paths

    def add(self, path: Path) -> None:
        """Add a file and its name, that is, its folder."""
        with self._lock:
            self._paths |= {path, path.parent}

    def make_folder(self, folder: Path, warehouse: Path) -> None:
        """Create a folder if it is missing, and add its name if it is in the warehouse.

        The name is added in any case: another process may have created it a moment ago.
        """
        is_there = folder.is_dir()
        if is_there and (folder in self._folders or warehouse not in folder.parents):
            return
        self.make_folder(folder.parent, warehouse)
        folder.mkdir(exist_ok=True)
        with self._lock:
            self._paths.add(folder.parent)
            self._folders.add(folder)

    def sync(self) -> None:
        """Put everything on disk.

        Raises:
            OSError: it failed; the next call tries again.
        """
        with self._lock:
            paths, self._paths = self._paths, set()
        try:
            with ThreadPoolExecutor(min(_THREADS, len(paths))) as workers:
                list(workers.map(_sync, paths))
        except BaseException:
            with self._lock:
                self._paths |= paths
            raise


def _sync(path: Path) -> None:
    with suppress(FileNotFoundError):  # deleted since: nothing refers to it
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


_UNSYNCED: Final = _Unsynced()
