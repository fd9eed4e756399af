"""The memory of a long run: what is freed goes back to the system, the rest is left alone.

Commits come and go in buffers of megabytes. Arrow's own allocators keep those for later, and so
does glibc, which by and by takes ever larger blocks from its heaps, where one small neighbour that
stays keeps a freed block resident, and makes such a heap for every thread.
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
    # From this size on, blocks are mapped and unmapped. Decoding takes and frees buffers of up to
    # 3 MB all the time; mapping those, too, would cost it half of its speed.
    (_MMAP_THRESHOLD, 4 << 20),
    (_TRIM_THRESHOLD, 64 << 20),  # as glibc would set it in the end, if it adjusted either
    (_ARENA_MAX, 1),
)


def return_freed_memory() -> None:
    """Make this process return large blocks to the system as soon as it frees them.

    To be called before anything starts a thread. Where the C library is not glibc, only Arrow's
    allocator is chosen.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:  # musl has none
            for option, value in _OPTIONS:
                mallopt(option, value)

    import pyarrow as pa  # noqa: PLC0415  it starts threads

    pa.set_memory_pool(pa.system_memory_pool())


def freeze_loaded_objects() -> None:
    """Exempt all objects of this moment from garbage collection.

    Every full collection visits the 200,000 objects of imported libraries, and each 100,000
    messages cause one: a quarter of a consumer's time. To be called once, when a run begins.
    """
    gc.collect()
    gc.freeze()
