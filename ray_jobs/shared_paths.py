"""Which paths of a config every node must find, and under which setting each stands."""

from __future__ import annotations

from collections.abc import Iterator

from avtok.load import PRETRAINED, shipped_codecs
from worldmodel.config import RunConfig
from worldmodel.model_folder import shipped_models


def is_store(path: str) -> bool:
    """s3://, gs://: nodes read it by themselves."""
    return "://" in path


def shared_media(cfg: RunConfig) -> Iterator[tuple[str, str]]:
    """(setting, path) of the sources and of the latent cache: on what all nodes mount, or in a store."""
    for source in cfg.data.sources:
        yield "data.manifest" if cfg.data.manifest else f"data.mixture {source.name}", source.manifest
    if cfg.data.cache:
        yield "data.cache", cfg.data.cache


def shared_models(cfg: RunConfig) -> Iterator[tuple[str, str]]:
    """(setting, folder) of models and codecs that do not travel with the packages."""
    if cfg.train.init and cfg.train.init not in shipped_models():
        yield "train.init", cfg.train.init
    for model in cfg.rollout.beside:
        if model not in shipped_models():
            yield "rollout.beside", model
    if cfg.objective.rep == "repa":
        for target in cfg.data.targets:
            yield f"data.targets {target.name}", target.encoder
    labels = cfg.data.labels
    for name in ("captioner", "recognizer", "aligner"):
        if folder := getattr(labels, name):
            yield f"data.labels.{name}", folder
    for modality, codec in (("video", cfg.codec.video), ("audio", cfg.codec.audio)):
        if codec not in shipped_codecs():
            yield f"codec.{modality}", codec.removeprefix(PRETRAINED)
