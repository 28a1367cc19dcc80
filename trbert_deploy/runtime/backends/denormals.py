"""Lets the processor take denormal numbers as zero, where it computes slowly with them.

Attention that is sure of itself gives most tokens weights under 1e-38, the least float32 with all
of its digits. On x86 such numbers slow attention down up to nine times, and whether they are 1e-40
or 0 changes no answer. Runtimes leave this to their callers: it is a flag of each thread.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager

#: In MXCSR: flush to zero what would come out denormal, and take as zero what is.
_FLAGS = 0x8000 | 0x0040


class _Environment(ctypes.Structure):
    """``fenv_t`` of the C library on Linux for x86-64; MXCSR stands last."""

    _fields_ = (("x87", ctypes.c_uint32 * 7), ("mxcsr", ctypes.c_uint32))


def _open_library() -> ctypes.PyDLL | None:
    """The C library of this process, where ``fenv_t`` is as above; None elsewhere."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return None
    library = ctypes.PyDLL(None)
    return library if hasattr(library, "fegetenv") else None


_library = _open_library()


@contextmanager
def denormals_as_zero() -> Iterator[None]:
    """Take denormal numbers as zero in this thread; behind it all is as it was.

    Elsewhere than on Linux for x86-64 nothing changes: other processors have no need of it.
    """
    if _library is None:
        yield
        return
    before = _Environment()
    _library.fegetenv(ctypes.byref(before))
    within = _Environment.from_buffer_copy(before)
    within.mxcsr |= _FLAGS
    _library.fesetenv(ctypes.byref(within))
    try:
        yield
    finally:
        _library.fesetenv(ctypes.byref(before))
