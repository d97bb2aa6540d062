"""The C library's memory allocator, from which PyTorch takes the memory of tensors on a CPU."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # parameters of glibc's mallopt(3)


def keep_freed_memory() -> None:
    """Make glibc keep the memory of freed tensors for the next ones; do nothing with any other C library.

    By default glibc returns large blocks to the system, which zeroes every page before handing it out again: that takes
    a sixth of a training step on a CPU. Keeping the blocks makes the process about a third larger.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
