"""Where the pixels of a cut are put: memory of this process, or memory that it shares with another one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

allocate: Callable[[tuple[int, ...], np.dtype], np.ndarray] = np.empty  # a decoder's process sets its own


def empty_pixels(shape: tuple[int, ...]) -> np.ndarray:
    """uint8 of any content."""
    return allocate(shape, np.dtype(np.uint8))
