"""Checkpoint -> Hugging Face folder, with its codecs beside the weights."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from avtok.load import codec_folder
from ray_jobs.errors import UserError
from ray_jobs.model_card import card_facts
from ray_jobs.run_folder import BEST, last_commit
from ray_jobs.train_worker import layout_of
from worldmodel.config import RunConfig
from worldmodel.export import NotAModel, load_model, save_model
from worldmodel.load_config import load_config
from worldmodel.model.transformer import WorldTransformer
from worldmodel.train.checkpoint import CheckpointMismatch, CheckpointReader
from worldmodel.train.engine import build_student


def export_run(run: Path, out: Path, *, best: bool = False) -> Path:
    """Writes the EMA weights of the last commit, or of the best. UserError when there is none."""
    commit = run / BEST if best else last_commit(run)
    if commit is None:
        raise UserError(f"{run}: nothing was committed, so there is nothing to export")
    if not commit.is_dir():
        raise UserError(
            f"{run}: has no best commit; train with train.keep_best=true and an evaluation at a commit's step"
        )
    cfg = load_config(run / "config.yaml")
    try:
        reader = CheckpointReader(commit)
    except CheckpointMismatch as error:
        raise UserError(str(error)) from None
    facts = card_facts(run, cfg, int(reader.model["step"]))
    save_model(out, reader.ema_weights(), layout_of(cfg), cfg, facts)
    _copy_codecs(cfg, out)
    return out


def export_untrained(cfg: RunConfig, out: Path) -> Path:
    """The model as training begins: what it then makes of a clip shows what training did."""
    layout = layout_of(cfg)
    save_model(out, build_student(cfg, layout).transformer.state_dict(), layout, cfg, {"steps": 0})
    _copy_codecs(cfg, out)
    return out


def _copy_codecs(cfg: RunConfig, out: Path) -> None:
    for modality, name in (("video", cfg.codec.video), ("audio", cfg.codec.audio)):
        shutil.copytree(codec_folder(name), out / "codecs" / modality, dirs_exist_ok=True)


@dataclass(frozen=True)
class LoadedModel:
    model: WorldTransformer
    cfg: RunConfig
    prediction: str
    folder: Path


def load_exported(folder: Path) -> LoadedModel:
    """UserError when the folder is no model of this version."""
    try:
        model, cfg, prediction = load_model(folder)
    except (NotAModel, KeyError, json.JSONDecodeError) as error:
        raise UserError(f"{folder}: cannot be loaded: {error}") from None
    return LoadedModel(model, cfg, prediction, folder)
