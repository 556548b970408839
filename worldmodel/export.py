"""A trained world model as a Hugging Face folder: model_index.json, transformer/, codecs/, README.md (model
card).

A model that ships with the package has no codecs/: they ship too, under the names in its config.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from worldmodel.config import ModelConfig, RunConfig
from worldmodel.layout import Layout
from worldmodel.model.transformer import WorldTransformer
from worldmodel.model_folder import FACTS_FILE, INDEX_FILE, WEIGHTS


class NotAModel(ValueError):
    """The folder is no exported model; the message says what is missing."""


def save_model(
    folder: Path, weights: dict[str, Tensor], layout: Layout, cfg: RunConfig, facts: dict[str, Any]
) -> None:
    """Writes index, transformer and model card; codecs are put beside them by the caller. facts: for the
    card."""
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
    (folder / FACTS_FILE).unlink(missing_ok=True)  # what was measured on earlier weights
    add_facts(folder, cfg, facts)


def add_facts(folder: Path, cfg: RunConfig, facts: dict[str, Any]) -> None:
    """Puts more into facts.json, and writes the model card again. A fact is a number or words."""
    path = folder / FACTS_FILE
    facts = (json.loads(path.read_text("utf-8")) if path.exists() else {}) | facts
    path.write_text(json.dumps(facts, indent=1), "utf-8")
    with safe_open(folder / "transformer" / WEIGHTS, "pt") as file:
        parameters = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    (folder / "README.md").write_text(_model_card(parameters, cfg, facts), "utf-8")


def check_facts(result: dict[str, Any]) -> dict[str, str]:
    """What `run_checks` measured, a line of the model card each: value, interval, truth itself, baselines."""
    facts = {"checked on": f"{result['episodes']} episodes, {result['prefix_s']:g} s given"}
    for name, check in result["checks"].items():
        if check.get("value") is None:
            continue
        beside = {"truth": check.get("floor"), **(check.get("baselines") or {})}
        said = ", ".join(f"{key.replace('_', ' ')} {v:.3g}" for key, v in beside.items() if v is not None)
        low, high = check.get("ci_low"), check.get("ci_high")
        interval = "" if low is None or high is None else f"{low:.3g} to {high:.3g}; "
        facts[name.replace("_", " ")] = f"{check['value']:.3g} {check.get('unit', '')} ({interval}{said})"
    return facts


def load_model(folder: Path) -> tuple[WorldTransformer, RunConfig, str]:
    """(model in eval mode, the run's config, prediction). NotAModel says what is missing."""
    index_path = folder / INDEX_FILE
    if not index_path.is_file():
        raise NotAModel(
            f"{folder}: no {INDEX_FILE} here; give an exported folder, or a run that has an export"
        )
    config_path, weights_path = folder / "transformer" / "config.json", folder / "transformer" / WEIGHTS
    index, config = _read_json(index_path), _read_json(config_path)
    try:
        cfg = RunConfig.model_validate(index["run"])
        fields = config["layout"]
        grid, patch = tuple(fields["video_grid"]), tuple(fields["patch"])
        layout = Layout(**{**fields, "video_grid": grid, "patch": patch})
        model = WorldTransformer(ModelConfig.model_validate(config["model"]), layout)
        prediction = config["prediction"]
    except (KeyError, TypeError, ValidationError) as error:
        problem = f"no key {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise NotAModel(f"{folder}: written by another version ({problem}); export the run again") from None
    try:
        weights = load_file(str(weights_path))
    except (OSError, SafetensorError) as error:
        problem = "missing" if isinstance(error, FileNotFoundError) else f"damaged or cut short ({error})"
        raise NotAModel(f"{weights_path}: {problem}; export the run again") from None
    _check_weights(weights_path, weights, model)
    model.load_state_dict(weights)
    return model.requires_grad_(False).eval(), cfg, prediction


def codecs_of(folder: Path, cfg: RunConfig) -> tuple[str, str]:
    """(picture, sound) codec of an exported model, for `load_codec`: the one beside its weights or, where a
    model goes without, the one that its config names."""
    named = {"video": cfg.codec.video, "audio": cfg.codec.audio}
    beside = {modality: folder / "codecs" / modality for modality in named}
    video, audio = (str(beside[m]) if beside[m].is_dir() else named[m] for m in named)
    return video, audio


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        problem = "missing" if isinstance(error, FileNotFoundError) else f"not JSON ({error})"
        raise NotAModel(f"{path}: {problem}; export the run again") from None


def _check_weights(path: Path, weights: dict[str, Tensor], model: WorldTransformer) -> None:
    saved = {name: tuple(w.shape) for name, w in weights.items()}
    ours = {name: tuple(w.shape) for name, w in model.state_dict().items()}
    if differing := [n for n in sorted(saved.keys() | ours.keys()) if saved.get(n) != ours.get(n)]:
        name = differing[0]
        raise NotAModel(
            f"{path}: {len(differing)} tensors differ from config.json, first {name}: "
            f"saved {saved.get(name)}, needs {ours.get(name)}; export the run again"
        )


def _model_card(parameters: int, cfg: RunConfig, facts: dict[str, Any]) -> str:
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    return (
        f"---\nlibrary_name: worldmodel\ntags: [world-model, audio-video, self-flow]\n---\n\n"
        f"# {cfg.name}\n\nJoint audio-video world model, {parameters / 1e6:.1f}M parameters, "
        f"{cfg.data.size[0]}x{cfg.data.size[1]} at {cfg.data.fps} frames/s with {cfg.data.sample_rate} Hz "
        f"sound. Averaged (EMA) weights.\n\n"
        f"| fact | value |\n|---|---|\n{rows}\n\n"
        f"Continue clips: `worldmodel rollout FOLDER --prompts CLIPS --seconds 1 --out DIR`\n"
    )
