"""Checkpoint -> Hugging Face folder, with its codecs beside the weights."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from avtok.load import codec_folder
from ray_jobs.errors import UserError
from ray_jobs.model_card import card_facts
from ray_jobs.run_folder import BEST, CHECKS, last_commit
from ray_jobs.train_worker import layout_of
from worldmodel.config import RunConfig
from worldmodel.export import NotAModel, check_facts, load_model, save_model
from worldmodel.load_config import load_config
from worldmodel.lora import base_of, check_same_base, merge_lora, read_lora, save_lora
from worldmodel.model.transformer import WorldTransformer
from worldmodel.train.checkpoint import CheckpointReader
from worldmodel.train.engine import build_student

LORA = "lora"  # beside the merged model


def export_run(run: Path, out: Path, *, best: bool = False) -> Path:
    """Writes the EMA weights of the last commit, or of the best; of a LoRA its base with it, and itself
    apart in lora/. run: its folder, or the name of one in runs/. UserError when there is none, or a LoRA's
    base is another now."""
    run = _run_folder(run)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; give a folder")
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
        base = base_of(cfg)
        check_same_base(reader.model.get("base"), base)
        weights = reader.ema_weights()
    except ValueError as error:
        raise UserError(str(error)) from None
    facts = card_facts(run, cfg, int(reader.model["step"]))
    if not best and (run / CHECKS).exists():  # they are of the last commit, and stay true of it
        facts |= check_facts(json.loads((run / CHECKS).read_text("utf-8")))
    if cfg.train.lora and base:
        save_lora(out / LORA, weights, cfg, base)
        facts |= {"LoRA": f"rank {cfg.train.lora.rank}, on {base['name']}"}
        model = base_model(cfg)
        merge_lora(model, read_lora(out / LORA), name=base["name"])
        weights = model.state_dict()
    save_model(out, weights, layout_of(cfg), cfg, facts)
    _copy_codecs(cfg, out)
    return out


def _run_folder(given: Path) -> Path:
    """UserError for what is no run."""
    for folder in (given, Path("runs") / given):
        if (folder / "config.yaml").is_file():
            return folder
    hint = "is no run: it has no config.yaml" if given.exists() else "no such folder or run"
    raise UserError(f"{given}: {hint}; give the folder of a run, or its name in runs/")


def export_untrained(cfg: RunConfig, out: Path) -> Path:
    """The model as training begins: what it then makes of a clip shows what training did."""
    save_model(out, base_model(cfg).state_dict(), layout_of(cfg), cfg, {"steps": 0})
    _copy_codecs(cfg, out)
    return out


def base_model(cfg: RunConfig) -> WorldTransformer:
    """What training begins from. A LoRA changes nothing yet, and is left out."""
    plain = cfg.model_copy(update={"train": cfg.train.model_copy(update={"lora": None})})
    return build_student(plain, layout_of(cfg)).transformer


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
