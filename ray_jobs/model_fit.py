"""Whether latents, model and what it begins from fit each other: told before a run takes its name."""

from __future__ import annotations

import json
from pathlib import Path

from avtok.load import codec_spec
from ray_jobs.errors import UserError
from ray_jobs.model_cost import build_on_meta
from worldmodel.config import RunConfig
from worldmodel.layout import Layout
from worldmodel.lora import check_base
from worldmodel.model_folder import INDEX_FILE, model_folder
from worldmodel.train.warm_start import compare, prediction_of


def check_layout(cfg: RunConfig) -> None:
    """UserError when the latents do not divide into the model's tokens, nothing of train.init fits, or
    train.lora names layers that there are not."""
    try:
        layout = Layout.from_specs(cfg, codec_spec(cfg.codec.video), codec_spec(cfg.codec.audio))
        init_lines(cfg, layout)
    except ValueError as error:
        raise UserError(str(error)) from None


def init_lines(cfg: RunConfig, layout: Layout) -> list[str]:
    """What becomes of the weights of train.init, for people; nothing where a run begins anew.

    ValueError where they do not fit.
    """
    if not cfg.train.init:
        return []
    folder = model_folder(cfg.train.init)
    transformer = build_on_meta(cfg, layout, is_adapted=False).transformer
    fit = compare(folder, {name: tuple(p.shape) for name, p in transformer.named_parameters()})
    other = _other_codecs(cfg, folder)
    if cfg.train.lora:
        check_base(fit, folder, cfg)
        if other:
            raise ValueError(
                f"train.lora: {folder} makes latents of {', '.join(other.values())}, and this run of other "
                f"codecs: set {', '.join(f'codec.{m}={name}' for m, name in other.items())}"
            )
        build_on_meta(cfg, layout)  # names the layers that train.lora.targets may mean
        return [f"adapts {folder} by a LoRA of rank {cfg.train.lora.rank}"]
    lines = [f"begins from {folder}: {line}" for line in fit.lines()]
    if (theirs := prediction_of(folder)) != cfg.objective.prediction:
        lines.append(
            f"it predicts {theirs}, this run {cfg.objective.prediction}: its outputs have to be learned"
        )
    lines += [
        f"its latents of {m} are those of {name}, this run's are of {getattr(cfg.codec, m)}: what they mean "
        "has to be learned"
        for m, name in other.items()
    ]
    return lines


def _other_codecs(cfg: RunConfig, folder: Path) -> dict[str, str]:
    """Codecs of a model whose latents are not this run's, by modality. One that cannot be read is not
    compared."""
    theirs = json.loads((folder / INDEX_FILE).read_text("utf-8")).get("codecs", {})
    found = {}
    for modality in ("video", "audio"):
        if modality not in theirs:
            continue
        beside = folder / "codecs" / modality
        name = str(beside) if beside.is_dir() else theirs[modality]
        try:
            spec = codec_spec(name)
        except ValueError:
            continue
        if spec.content_hash != codec_spec(getattr(cfg.codec, modality)).content_hash:
            found[modality] = name
    return found
