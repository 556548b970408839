"""What a codec promises about time, shape and scale. Standard library only: configs load on a laptop without
torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any, Literal

Modality = Literal["video", "audio"]


@dataclass(frozen=True)
class CodecSpec:
    """Geometry of one codec. A *unit* is one video frame or one audio sample; a *step* is one latent time
    step.

    Step 0 covers the first `first_units` units and every later step `stride_units`, so a causal video codec
    that gives the first frame a step of its own says first_units=1. An encoder never looks ahead; it may read
    `left_context_units` before the cut. A decoder may be late by `latency_units`.
    """

    name: str
    modality: Modality
    rate_hz: int
    stride_units: int
    channels: int
    spatial_stride: tuple[int, int] = (1, 1)
    first_units: int = 0
    left_context_units: int = 0
    latency_units: int = 0
    look_ahead_units: int = 0
    scale: float = 1.0
    content_hash: str = ""

    def __post_init__(self) -> None:
        if self.first_units == 0:
            object.__setattr__(self, "first_units", self.stride_units)
        if min(self.rate_hz, self.stride_units, self.channels, self.first_units) <= 0:
            raise ValueError(
                f"codec {self.name}: rate, stride, channels and first units must be positive, got {self}"
            )

    @property
    def steps_per_second(self) -> Fraction:
        return Fraction(self.rate_hz, self.stride_units)

    def units_of_steps(self, num_steps: int) -> int:
        """Units that `num_steps` latent steps cover."""
        return 0 if num_steps <= 0 else self.first_units + (num_steps - 1) * self.stride_units

    def steps_of_units(self, num_units: int) -> int:
        """Whole latent steps in `num_units` units; a rest shorter than a step is left out."""
        return 0 if num_units < self.first_units else 1 + (num_units - self.first_units) // self.stride_units

    def span_s(self, step: int) -> tuple[float, float]:
        """[start, end) of one latent step, in seconds from the start of the cut."""
        start = 0 if step == 0 else self.first_units + (step - 1) * self.stride_units
        return start / self.rate_hz, self.units_of_steps(step + 1) / self.rate_hz

    def latent_shape(self, num_steps: int, size_hw: tuple[int, int] = (1, 1)) -> tuple[int, ...]:
        """Shape of a clip's latents: [T, H, W, C] for video, [T, C] for audio. ValueError if the size does
        not divide."""
        if self.modality == "audio":
            return (num_steps, self.channels)
        height, width = size_hw
        if height % self.spatial_stride[0] or width % self.spatial_stride[1]:
            raise ValueError(
                f"codec {self.name} needs a size that {self.spatial_stride} divides, got {height}x{width}; "
                f"nearest: {_nearest(height, self.spatial_stride[0])}x"
                f"{_nearest(width, self.spatial_stride[1])}"
            )
        return (num_steps, height // self.spatial_stride[0], width // self.spatial_stride[1], self.channels)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> CodecSpec:
        height, width = fields.get("spatial_stride", (1, 1))
        known: dict[str, Any] = {**fields, "spatial_stride": (int(height), int(width))}
        return cls(**known)


def _nearest(value: int, multiple: int) -> int:
    return max(multiple, round(value / multiple) * multiple)
