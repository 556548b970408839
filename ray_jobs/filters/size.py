"""Pictures that are too small."""

from __future__ import annotations

from typing import Any


def too_small(row: dict[str, Any], *, min_side: int) -> str:
    side = min(row["width"], row["height"])
    if not row["has_video"] or side >= min_side:
        return ""
    return f"too small: {row['width']}x{row['height']}, min_side={min_side}"
