"""Beginning from another model: what fits of its weights is taken, and what does not is named.

A deeper model takes the blocks that there are; the others begin with closed gates and change
nothing. Longer clips and larger pictures need no weights of their own: positions are seconds and patches.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from worldmodel.model_folder import WEIGHTS

Shape = tuple[int, ...]
WIDEST = "blocks.0.attention.out.weight"  # width by width


class NothingFits(ValueError):
    """The model cannot begin from that one; the message says why."""


@dataclass(frozen=True)
class Fit:
    """Names of weights by what becomes of them."""

    taken: list[str]
    fresh: list[str]  # only this model has them
    differing: dict[str, tuple[Shape, Shape]]  # saved, needed
    unused: list[str]  # only the other model has them
    share: float  # of this model's parameters that are taken

    def lines(self) -> list[str]:
        """For people, a line a layer: what of each does not fit."""
        found = [f"{self.share:.1%} of the parameters are taken, {len(self.taken)} tensors"]
        for name, (saved, needed) in self.differing.items():
            found.append(f"{name}: saved {list(saved)}, needs {list(needed)}: begins anew")
        found += [f"{layer}: not in that model: begins anew" for layer in _layers(self.fresh)]
        return found + [f"{layer}: not in this model: left out" for layer in _layers(self.unused)]


def compare(folder: Path, needed: dict[str, Shape]) -> Fit:
    """Reads no weights. NothingFits when no block fits, with the width of both; also for a damaged file."""
    saved = saved_shapes(folder)
    taken = [name for name, shape in needed.items() if saved.get(name) == shape]
    differing = {n: (saved[n], s) for n, s in needed.items() if n in saved and saved[n] != s}
    widths = [shapes.get(WIDEST, (0,))[0] for shapes in (saved, needed)]
    if widths[0] != widths[1]:
        raise NothingFits(
            f"{folder}: no block of it fits: width {widths[0]} against {widths[1]}; begin from a model of "
            "the same width"
        )
    sizes = {name: math.prod(shape) for name, shape in needed.items()}
    return Fit(
        taken,
        [name for name in needed if name not in saved],
        differing,
        [name for name in saved if name not in needed],
        sum(sizes[name] for name in taken) / sum(sizes.values()),
    )


def saved_shapes(folder: Path) -> dict[str, Shape]:
    """Of an exported model's weights."""
    path = folder / "transformer" / WEIGHTS
    try:
        with safe_open(str(path), "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        problem = "missing" if isinstance(error, FileNotFoundError) else f"damaged or cut short ({error})"
        raise NothingFits(f"{path}: {problem}; export the run again") from None


@torch.no_grad()
def warm_start(transformer: nn.Module, folder: Path) -> Fit:
    """Puts what fits of the averaged weights of an exported model into `transformer`."""
    own: dict[str, Tensor] = dict(transformer.named_parameters())
    fit = compare(folder, {name: tuple(parameter.shape) for name, parameter in own.items()})
    with safe_open(str(folder / "transformer" / WEIGHTS), "pt") as file:
        for name in fit.taken:
            own[name].copy_(file.get_tensor(name))
    return fit


def prediction_of(folder: Path) -> str:
    """What its outputs mean: x or v."""
    return json.loads((folder / "transformer" / "config.json").read_text())["prediction"]


def _layers(names: list[str]) -> list[str]:
    """blocks.7 for all of its weights, the name itself for others."""
    return list(dict.fromkeys(".".join(n.split(".")[:2]) if n.startswith("blocks.") else n for n in names))
