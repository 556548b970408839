"""A trained world model as a Hugging Face folder: model_index.json, transformer/, codecs/, README.md (model card)."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from worldmodel.config import ModelConfig, RunConfig
from worldmodel.layout import Layout
from worldmodel.model.transformer import WorldTransformer

INDEX_FILE = "model_index.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"


class NotAModel(ValueError):
    """The folder is no exported model; the message says what is missing."""


def save_model(folder: Path, weights: dict[str, Tensor], layout: Layout, cfg: RunConfig, facts: dict[str, Any]) -> None:
    """Writes index, transformer and model card; codecs are put beside them by the caller. facts: for the card."""
    (folder / "transformer").mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in weights.items()}, str(folder / "transformer" / WEIGHTS))
    config = {
        "_class_name": "WorldTransformer",
        "model": cfg.model.model_dump(mode="json"),
        "layout": asdict(layout),
        "prediction": cfg.objective.prediction,
    }
    (folder / "transformer" / "config.json").write_text(json.dumps(config, indent=1))
    index = {
        "_class_name": "WorldModelPipeline",
        "transformer": ["worldmodel", "WorldTransformer"],
        "codecs": {"video": cfg.codec.video, "audio": cfg.codec.audio},
        "text_encoder": "bytes",
        "run": cfg.model_dump(mode="json"),
    }
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=1))
    (folder / "README.md").write_text(_model_card(weights, cfg, facts))


def load_model(folder: Path) -> tuple[WorldTransformer, RunConfig, str]:
    """(model in eval mode, the run's config, prediction). NotAModel says what is missing."""
    index_path = folder / INDEX_FILE
    if not index_path.is_file():
        raise NotAModel(f"{folder}: no {INDEX_FILE} here; give an exported folder, or a run that has an export")
    cfg = RunConfig.model_validate(json.loads(index_path.read_text())["run"])
    config = json.loads((folder / "transformer" / "config.json").read_text())
    fields = config["layout"]
    layout = Layout(**{**fields, "video_grid": tuple(fields["video_grid"]), "patch": tuple(fields["patch"])})
    model = WorldTransformer(ModelConfig.model_validate(config["model"]), layout)
    model.load_state_dict(load_file(str(folder / "transformer" / WEIGHTS)))
    return model.requires_grad_(False).eval(), cfg, config["prediction"]


def _model_card(weights: dict[str, Tensor], cfg: RunConfig, facts: dict[str, Any]) -> str:
    parameters = sum(math.prod(w.shape) for w in weights.values())
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    return (
        f"---\nlibrary_name: worldmodel\ntags: [world-model, audio-video, self-flow]\n---\n\n# {cfg.name}\n\n"
        f"Joint audio-video world model, {parameters / 1e6:.1f}M parameters, {cfg.data.size[0]}x{cfg.data.size[1]} at "
        f"{cfg.data.fps} frames/s with {cfg.data.sample_rate} Hz sound. EMA weights of `worldmodel train`.\n\n"
        f"| fact | value |\n|---|---|\n{rows}\n\n"
        f"Continue clips: `worldmodel rollout FOLDER --prompts CLIPS --seconds 1 --out DIR`\n"
    )
