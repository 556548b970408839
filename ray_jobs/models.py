"""Models that commands are given, with a user's error for those that are not there. Imports without torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from ray_jobs.errors import UserError
from ray_jobs.resolve import hidden_size
from worldmodel.config import LoraConfig, TargetConfig
from worldmodel.model_folder import model_folder

ENCODER_FILES = ("config.json", "preprocessor_config.json")


def find_model(name: str) -> Path:
    """Folder of an exported model. UserError names what is missing."""
    try:
        return model_folder(name)
    except ValueError as error:
        raise UserError(str(error)) from None


def check_beside(names: tuple[str, ...]) -> None:
    """UserError for a model of rollout.beside that is not there: now, not when training has ended."""
    for name in names:
        try:
            find_model(name)
        except UserError as error:
            raise UserError(*(f"rollout.beside: {line}" for line in error.lines)) from None


def check_init(name: str) -> None:
    """UserError for a model of train.init that is not there."""
    if name:
        try:
            find_model(name)
        except UserError as error:
            raise UserError(*(f"train.init: {line}" for line in error.lines)) from None


def check_encoders(targets: Sequence[TargetConfig]) -> None:
    """UserError where features of frozen encoders are to be followed that cannot be read here."""
    if targets and not find_spec("transformers"):
        raise UserError(
            "data.targets needs transformers, which is not installed; pip install 'worldmodel[pretrained]'"
        )
    for target in targets:
        folder = Path(target.encoder).expanduser()
        weights = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
        missing = [name for name in ENCODER_FILES if not (folder / name).is_file()]
        missing += [] if weights else ["weights (*.safetensors or *.bin)"]
        if missing:
            raise UserError(
                f"data.targets: {target.name}: {folder} has no {', no '.join(missing)}; give the folder of a "
                "transformers encoder, and on every node"
            )
        _check_modality(target)
        _check_width(target)


def _check_modality(target: TargetConfig) -> None:
    """By its preprocessor, as `avtok.frozen` tells them apart, but before anything is loaded."""
    try:
        settings = json.loads((Path(target.encoder).expanduser() / ENCODER_FILES[1]).read_text("utf-8"))
    except ValueError:  # loading it says more
        return
    if not isinstance(settings, dict):
        return
    sees, hears = "image_mean" in settings, "sampling_rate" in settings
    if target.modality == "video" and hears and not sees:
        wrong, right = "no encoder of pictures", "audio"
    elif target.modality == "audio" and sees and not hears:
        wrong, right = "no encoder of sound", "video"
    else:
        return
    raise UserError(
        f"data.targets: {target.name}: {target.encoder} is {wrong}; give one, or modality: {right}"
    )


def _check_width(target: TargetConfig) -> None:
    try:
        told = hidden_size(target.encoder)
    except ValueError:  # of its config.json: loading it says more
        return
    if target.width and told and told != target.width:
        raise UserError(
            f"data.targets: {target.name}: width={target.width}, and features of {target.encoder} are {told} "
            "wide; use that, or leave width out"
        )


def check_fp8(*, fp8: bool) -> None:
    """UserError where products are to be in FP8 without torchao."""
    if fp8 and not find_spec("torchao"):
        raise UserError("train.fp8 needs torchao, which is not installed; pip install 'torchao>=0.18'")


def check_lora(lora: LoraConfig | None) -> None:
    """UserError where a LoRA is to be trained without peft."""
    if lora and not find_spec("peft"):
        raise UserError("train.lora needs peft, which is not installed; pip install 'worldmodel[lora]'")
