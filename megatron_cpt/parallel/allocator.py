"""Memory on a CPU: what a step frees is kept for the next one.

The C library gives large arrays back to the system as soon as they are freed, and the system clears every page of
them anew when the next step asks for as much: 3 to 11 % of a step, the more the larger the vocabulary. Kept, the peak
is what it was, and the process stays at it.
"""

import ctypes

# Parameters of glibc's mallopt (malloc.h).
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Has the C library keep what this process frees; False where it is not glibc, and nothing changes."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all([mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, 2**31 - 1)])
