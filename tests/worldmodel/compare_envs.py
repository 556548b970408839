"""Two nests of observations, rewards and infos: the same in shape and type, and how far apart in value."""

from __future__ import annotations

from typing import Any

import numpy as np


def differences(one: Any, other: Any, place: str = "") -> dict[str, float]:
    """Greatest difference by the name of each array; AssertionError where anything else differs."""
    assert type(one) is type(other), f"{place}: {type(one)} and {type(other)}"
    if isinstance(one, dict):
        assert one.keys() == other.keys(), f"{place}: {one.keys()} and {other.keys()}"
        return _joined(differences(one[name], other[name], name) for name in one)
    if isinstance(one, tuple) or (isinstance(one, np.ndarray) and one.dtype == object):
        assert len(one) == len(other)
        return _joined(differences(a, b, place) for a, b in zip(one, other, strict=True))
    if isinstance(one, np.ndarray):
        assert (one.dtype, one.shape) == (other.dtype, other.shape), place
        return {place: float(np.abs(one.astype(float) - other.astype(float)).max(initial=0.0))}
    assert one == other, place
    return {}


def _joined(parts: Any) -> dict[str, float]:
    found: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            found[name] = max(found.get(name, 0.0), value)
    return found
