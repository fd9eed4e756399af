"""Limit the memory of long runs: return freed memory to the system.

Commits use buffers of megabytes. Arrow's allocators cache freed buffers. So does glibc: over time
it takes ever larger blocks from its heaps, one per thread, where a small live neighbour keeps a
freed block resident.
"""

import ctypes
import gc
import sys
from typing import Final

# https://man7.org/linux/man-pages/man3/mallopt.3.html
_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
_ARENA_MAX: Final = -8
_OPTIONS: Final = (
    # Blocks of this size and more are mapped and unmapped. Decoding constantly allocates buffers of
    # up to 3 MB; mapping those, too, would halve its speed.
    (_MMAP_THRESHOLD, 4 << 20),
    (_TRIM_THRESHOLD, 64 << 20),  # the value that glibc would eventually adjust to
    (_ARENA_MAX, 1),
)


def return_freed_memory() -> None:
    """Make this process return large blocks to the system as soon as it frees them.

    Call it before any thread is started. If the C library is not glibc, it only selects Arrow's
    allocator.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:  # not in musl
            for option, value in _OPTIONS:
                mallopt(option, value)

    import pyarrow as pa  # noqa: PLC0415  it starts threads

    pa.set_memory_pool(pa.system_memory_pool())


def freeze_loaded_objects() -> None:
    """Exempt all current objects from garbage collection.

    Every full collection visits the 200,000 objects of imported libraries, and every 100,000
    messages cause one: a quarter of a consumer's time. Call it once, when a run starts.
    """
    gc.collect()
    gc.freeze()
