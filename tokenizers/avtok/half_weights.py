"""Folder of a learned codec: weights in half precision, and codec.json with geometry and their hash."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from avtok.spec import CodecSpec
from avtok.video import weights_hash

WEIGHTS_FILE = "weights.safetensors"


def save_codec(
    folder: str | Path, kind: str, spec: CodecSpec, net: nn.Module, cfg: Any, trained_on: Sequence[str]
) -> None:
    """cfg: the dataclass that the network is built from."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / WEIGHTS_FILE
    save_file({name: w.detach().half().contiguous() for name, w in net.state_dict().items()}, path)
    path.chmod(0o644)  # safetensors makes it private, and other users load it
    spec = replace(spec, content_hash=weights_hash(path))
    record = {"kind": kind, **spec.to_dict(), "net": asdict(cfg), "trained_on": list(trained_on)}
    (folder / "codec.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def load_weights(folder: str | Path, spec: CodecSpec, net: nn.Module) -> None:
    """Fills the network in fp32 and freezes it. ValueError if the weights are not those of codec.json."""
    path = Path(folder) / WEIGHTS_FILE
    if spec.content_hash and weights_hash(path) != spec.content_hash:
        raise ValueError(f"{path} does not match the content_hash of its codec.json; save the codec again")
    net.load_state_dict({name: w.float() for name, w in load_file(path).items()})
    net.eval().requires_grad_(False)
