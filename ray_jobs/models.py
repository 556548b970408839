"""Models that commands are given, with a user's error for those that are not there. Imports without torch."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from ray_jobs.errors import UserError
from worldmodel.config import LoraConfig
from worldmodel.model_folder import model_folder


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


def check_fp8(*, fp8: bool) -> None:
    """UserError where products are to be in FP8 without torchao."""
    if fp8 and not find_spec("torchao"):
        raise UserError("train.fp8 needs torchao, which is not installed; pip install 'torchao>=0.18'")


def check_lora(lora: LoraConfig | None) -> None:
    """UserError where a LoRA is to be trained without peft."""
    if lora and not find_spec("peft"):
        raise UserError("train.lora needs peft, which is not installed; pip install 'worldmodel[lora]'")
