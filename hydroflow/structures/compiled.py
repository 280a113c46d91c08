"""The decorator for compiled inner loops: numba with its disk cache where one can be written, without it where not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """``numba.njit`` that releases the interpreter lock and keeps machine code between processes.

    On a read-only installation without a writable home numba refuses to set up its cache; the code is then compiled anew
    in each process (some 15 s) instead of failing at import.
    """
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:
        return numba.njit(nogil=True)(function)
