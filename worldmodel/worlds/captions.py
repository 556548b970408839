"""What a scene looks like at its start, in words."""

from __future__ import annotations

from collections.abc import Sequence

from worldmodel.worlds.physics import Disc
from worldmodel.worlds.sound import MATERIALS

DIRECTIONS = ("left", "right", "up", "down")


def direction_of(velocity: tuple[float, float]) -> str:
    """One of DIRECTIONS: the axis on which it moves faster; y points down."""
    x, y = velocity
    if abs(x) >= abs(y):
        return "right" if x > 0 else "left"
    return "down" if y > 0 else "up"


def caption_of(discs: Sequence[Disc], materials: Sequence[str], colors: Sequence[str]) -> str:
    """Each body's colour, material and direction: "a red steel ball and a blue wooden one, moving left", or
    "a red steel ball moving left and a blue wooden one moving up" where they part."""
    bodies = [
        f"{_article(color)} {color} {MATERIALS[material].adjective} {'one' if index else 'ball'}"
        for index, (color, material) in enumerate(zip(colors, materials, strict=True))
    ]
    directions = [direction_of(disc.velocity) for disc in discs]
    if len(set(directions)) == 1:
        return f"{_joined(bodies)}, moving {directions[0]}"
    return _joined([f"{body} moving {direction}" for body, direction in zip(bodies, directions, strict=True)])


def short_caption(materials: Sequence[str]) -> str:
    """Of a world whose colours come with the material: at most 24 bytes."""
    names = [MATERIALS[name].adjective for name in materials]
    return f"{_article(names[0])} {names[0]} ball bounces" if len(names) == 1 else f"{len(names)} balls"


def _joined(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
