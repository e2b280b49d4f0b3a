"""How a program that runs network after network keeps its memory."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""As in glibc's malloc.h."""

LARGEST_KEPT = 1 << 30
"""Bytes: a block of more than this goes back to the system when it is freed."""


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, for the next step to use.

    glibc returns blocks of more than 32 MiB to the system and asks for them again, and the system clears each page at
    its first touch: training on a CPU spends a third of its time so. The price is memory: what was cut up is not always
    found again, and the peak grows by a tenth or two. This is a setting of the whole process, so programs call it
    (those in tools/ do), and the library never does.

    Returns:
        Whether it took effect: False with another C library, such as musl or macOS's.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    kept = mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    return bool(kept)
