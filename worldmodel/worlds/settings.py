"""Settings of the embedded worlds: what a clip may hold, by name and by split."""

from __future__ import annotations

from dataclasses import dataclass, replace

from worldmodel.worlds.drawing import COLORS
from worldmodel.worlds.sound import MATERIALS, safe_gain

STANDARD_RADIUS = 0.12  # a ball of this radius and density 1 has mass 1
PUSHER_RADIUS = 0.07
SPLITS = ("in", "ood_speed", "ood_size", "ood_count")


@dataclass(frozen=True)
class BounceSettings:
    """What `simulate` draws from, in box widths and box widths per second; the box is the picture.

    colors: names that the bodies of a clip draw from without repeats; empty gives each its material's own
    colour, and then every ball weighs 1. occluder: share of clips with a plate in front of the bodies.
    pusher: a disc that follows actions of at most `action_limit` box widths/s an axis.
    """

    world: str = "bounce_one"
    split: str = "in"
    bodies: tuple[int, int] = (1, 1)
    speed: tuple[float, float] = (0.4, 1.0)
    radius: tuple[float, float] = (0.10, 0.14)
    off_axis_degrees: float = 15.0
    materials: tuple[str, ...] = tuple(MATERIALS)
    colors: tuple[str, ...] = ()
    occluder: float = 0.0
    pusher: bool = False
    action_limit: float = 0.8
    damping: float = 1.0
    size_px: int = 64
    fps: int = 16
    sample_rate: int = 16000

    def __post_init__(self) -> None:
        unknown = [name for name in self.materials if name not in MATERIALS]
        if unknown or not self.materials:
            raise ValueError(f"materials must be some of {', '.join(MATERIALS)}, got {self.materials}")
        if not 0 < self.speed[0] <= self.speed[1]:
            raise ValueError(f"speed must be 0 < low <= high, got {self.speed}")
        if not 0 < self.radius[0] <= self.radius[1] < 0.5:
            raise ValueError(f"radius must be 0 < low <= high < 0.5 box widths, got {self.radius}")
        if not 0 <= self.off_axis_degrees < 45:
            raise ValueError(f"off_axis_degrees must be in [0, 45), got {self.off_axis_degrees}")
        if min(self.size_px, self.fps, self.sample_rate) <= 0:
            raise ValueError(f"size_px, fps and sample_rate must be positive, got {self}")
        if not 1 <= self.bodies[0] <= self.bodies[1] <= len(COLORS):
            raise ValueError(f"bodies must be 1 <= low <= high <= {len(COLORS)}, got {self.bodies}")
        if unknown := [name for name in self.colors if name not in COLORS]:
            raise ValueError(f"colors must be some of {', '.join(COLORS)}, got {unknown}")
        if self.colors and len(self.colors) < self.bodies[1]:
            raise ValueError(f"{self.bodies[1]} bodies need as many colors, got {len(self.colors)}")
        # Discs thrown at random cover at most about half of a box; beyond that no free place is found.
        if self.bodies[1] * 4.0 * self.radius[1] ** 2 > 0.4:
            raise ValueError(f"{self.bodies[1]} bodies of radius {self.radius[1]} do not fit into the box")
        if not 0 <= self.occluder <= 1 or not 0 < self.damping <= 1 or self.action_limit <= 0:
            raise ValueError(
                f"occluder must be in [0, 1], damping in (0, 1] and action_limit positive, got "
                f"{self.occluder}, {self.damping}, {self.action_limit}"
            )

    def mass(self, material: str, radius: float) -> float:
        """In standard balls. Worlds without colours of their own keep to one mass."""
        return MATERIALS[material].density * (radius / STANDARD_RADIUS) ** 2 if self.colors else 1.0

    @property
    def gain(self) -> float:
        """One gain for the whole world, so that loudness means impulse."""
        heaviest = max(self.mass(name, self.radius[1]) for name in self.materials)
        return safe_gain(
            [MATERIALS[name] for name in self.materials],
            largest_impulse=2.0 * heaviest * self.speed[1],
            shortest_interval_s=(1.0 - 2.0 * self.radius[1]) / self.speed[1],
        )


_BOUNCE = BounceSettings(
    world="bounce",
    bodies=(1, 3),
    speed=(0.3, 0.9),
    radius=(0.07, 0.13),
    colors=tuple(COLORS),
    occluder=0.3,
)
# Balls slow down here, or a few minutes of pushing would make them ever faster.
_PUSHER = replace(
    _BOUNCE, world="pusher", bodies=(1, 2), speed=(0.1, 0.5), occluder=0.0, pusher=True, damping=0.6
)
_WORLDS: dict[str, dict[str, BounceSettings]] = {
    world.world: {
        "in": world,
        "ood_speed": replace(world, split="ood_speed", speed=(speed * 1.2, speed * 1.7)),
        "ood_size": replace(world, split="ood_size", radius=(size + 0.02, size + 0.05)),
        "ood_count": replace(world, split="ood_count", bodies=(world.bodies[1] + 1,) * 2),
    }
    for world, speed, size in (
        (BounceSettings(), 1.0, 0.14),
        (_BOUNCE, 0.9, 0.13),
        (_PUSHER, 0.5, 0.13),
    )
}
WORLDS = tuple(_WORLDS)


def world_settings(world: str, split: str = "in") -> BounceSettings:
    """ValueError for a name that is not there. Splits other than `in` hold what training never shows: faster,
    larger or more bodies."""
    if world not in _WORLDS:
        raise ValueError(f"no world is named {world!r}; there is {', '.join(WORLDS)}")
    if split not in SPLITS:
        raise ValueError(f"no split is named {split!r}; there is {', '.join(SPLITS)}")
    return _WORLDS[world][split]
