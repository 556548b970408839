"""Pictures in which nothing moves, and pictures that are black."""

from __future__ import annotations

import numpy as np

from ray_jobs.filters.look import Look

MOST_CHANGE = 3.0  # of 255, of the mean of any part of the picture; what an encoder alone does to it is less
BLACK_LEVEL = 20.0  # of 255, of the lightest part
MOST_BLACK = 0.95  # of the samples


def is_static(look: Look) -> str:
    """No part of the picture ever departs from how the clip begins. One sample alone says nothing."""
    if len(look.blocks_TRK) < 2:
        return ""
    blocks_TRK = look.blocks_TRK.astype(np.float32)
    change = float(np.abs(blocks_TRK - blocks_TRK[0]).max())
    return (
        f"static: no part of the picture changes by more than {change:.1f} of 255"
        if change < MOST_CHANGE
        else ""
    )


def is_black(look: Look) -> str:
    if not len(look.blocks_TRK):
        return ""
    lightest_T = look.blocks_TRK.astype(np.float32).max((1, 2))
    fraction = float((lightest_T < BLACK_LEVEL).mean())
    return f"black: {fraction:.0%} of its pictures" if fraction >= MOST_BLACK else ""
