"""LoRA (arXiv 2106.09685) on an exported model: begun, kept apart as a PEFT folder, merged. Alone knows peft.

A LoRA names its base and the hash of the base's weights, and is refused by a model with others.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from worldmodel.config import RunConfig
from worldmodel.model.transformer import WorldTransformer
from worldmodel.model_folder import WEIGHTS, model_folder
from worldmodel.train.warm_start import Fit, prediction_of

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
ADAPTER = "default"  # peft's name of the only one
PREFIX = "base_model.model."  # of names in peft's files
HASHED = "sha256:"


class LoraError(ValueError):
    """A LoRA that cannot be trained or used here; one line says why."""


@dataclass(frozen=True)
class Lora:
    """A folder of peft's. `weights` have the names of its file, without PREFIX."""

    folder: Path
    config: Any
    weights: dict[str, Tensor]

    @property
    def base(self) -> str:
        return self.config.base_model_name_or_path or "a model that it does not name"

    @property
    def base_sha256(self) -> str:
        """Empty for a LoRA that other tools wrote."""
        revision = self.config.revision or ""
        return revision.removeprefix(HASHED) if revision.startswith(HASHED) else ""


def begin_lora(transformer: WorldTransformer, cfg: RunConfig) -> None:
    """Freezes the transformer and puts adapters beside its linear layers. Their output is zero until they are
    trained, and they are drawn alike on every rank. LoraError for targets that name no layer."""
    assert cfg.train.lora is not None, "called for runs that train one"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.seed)
        _peft().inject_adapter_in_model(_peft_config(transformer, cfg), transformer, ADAPTER)


def check_base(fit: Fit, folder: Path, cfg: RunConfig) -> None:
    """LoraError unless this run's model is that of train.init: what is frozen cannot learn what is
    missing."""
    theirs = json.loads((folder / "transformer" / "config.json").read_text())["model"]
    ours = cfg.model.model_dump(mode="json")
    wrong = [f"model.{key}={theirs[key]}" for key in ours if key in theirs and theirs[key] != ours[key]]
    if (prediction := prediction_of(folder)) != cfg.objective.prediction:
        wrong.append(f"objective.prediction={prediction}")
    unfit = [*fit.fresh, *fit.differing, *fit.unused]
    if unfit or prediction != cfg.objective.prediction:
        raise LoraError(
            f"train.lora: this run's model is not that of train.init={cfg.train.init}, which stays as it is: "
            f"set {', '.join(wrong) or 'codec as it has them'}"
        )


def base_of(cfg: RunConfig) -> dict[str, str] | None:
    """Name and hash of what a LoRA run adapts; None for other runs. ValueError where it is gone."""
    if cfg.train.lora is None:
        return None
    return {"name": cfg.train.init, "sha256": folder_hash(model_folder(cfg.train.init))}


def check_same_base(begun: Mapping[str, str] | None, now: Mapping[str, str] | None) -> None:
    """LoraError when the model that a LoRA was begun on has other weights now."""
    if begun and now and begun["sha256"] != now["sha256"]:
        raise LoraError(
            f"train.init: {now['name']} has other weights (sha256 {now['sha256'][:12]}) than when this LoRA "
            f"was begun ({begun['sha256'][:12]}); bring them back, or train under another name"
        )


def folder_hash(folder: Path) -> str:
    """Of an exported model's weights. LoraError where they are missing or damaged."""
    file = folder / "transformer" / WEIGHTS
    try:
        return weights_hash(load_file(str(file)))
    except (OSError, SafetensorError) as error:
        raise LoraError(f"{file}: missing or damaged ({error}); export or copy that model again") from None


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """sha256 over names, shapes and fp32 values, whatever the file holds beside them."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        values = weights[name].detach().cpu().float().contiguous()
        digest.update(f"{name}{list(values.shape)}".encode())
        digest.update(values.numpy().data)
    return digest.hexdigest()


def save_lora(folder: Path, weights: Mapping[str, Tensor], cfg: RunConfig, base: Mapping[str, str]) -> None:
    """Writes a folder that peft reads. weights: averaged ones, by their names in a transformer with
    adapters."""
    folder.mkdir(parents=True, exist_ok=True)
    named = {PREFIX + n.replace(f".{ADAPTER}.", "."): w.contiguous() for n, w in weights.items()}
    layers = sorted({name.partition(".lora_")[0] for name in weights})
    config = _config_of(layers, cfg, base)
    config.inference_mode = True
    config.target_modules = layers  # not a set, whose order changes from run to run
    config.save_pretrained(str(folder))
    save_file(named, str(folder / WEIGHTS_FILE), metadata={"format": "pt"})


def lora_folder(given: str | Path) -> Path:
    """A LoRA's own folder, an export or a run that holds one. LoraError names what is missing."""
    for folder in (
        Path(given),
        Path(given, "lora"),
        Path(given, "export", "lora"),
        Path("runs", given, "export", "lora"),
    ):
        if (folder / CONFIG_FILE).is_file():
            return folder
    raise LoraError(f"{given}: no LoRA ({CONFIG_FILE}) here; give the folder lora of an exported run")


def read_lora(given: str | Path) -> Lora:
    """LoraError for a folder that holds none, or a damaged one."""
    folder = lora_folder(given)
    try:
        config = _peft().LoraConfig.from_pretrained(str(folder))
        weights = load_file(str(folder / WEIGHTS_FILE))
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise LoraError(f"{folder}: missing or damaged files ({error}); export the run again") from None
    return Lora(folder, config, {name.removeprefix(PREFIX): w for name, w in weights.items()})


@torch.no_grad()
def merge_lora(model: WorldTransformer, lora: Lora, *, name: str, scale: float = 1.0) -> dict[str, Tensor]:
    """Adds a LoRA to the weights of `model`, called `name`; returns the weights that it changed, as they
    were. LoraError for one of another base."""
    if not math.isfinite(scale):
        raise LoraError(f"LoRA scale {scale}: give a number, such as 1 for as it was trained")
    _check_belongs(model, lora, name)
    peft = _peft()
    layers = {key.partition(".lora_")[0] for key in lora.weights}
    before = {
        f"{layer}.{key}": value.clone()
        for layer in sorted(layers)
        for key, value in model.get_submodule(layer).state_dict().items()
    }
    tuner = peft.LoraModel(model, lora.config, ADAPTER)
    peft.set_peft_model_state_dict(model, lora.weights, ADAPTER)
    adapted: list[Any] = [m for m in model.modules() if isinstance(m, peft.tuners.lora.LoraLayer)]
    for layer in adapted:
        layer.set_scale(ADAPTER, scale)
    tuner.merge_and_unload()
    model.requires_grad_(False)
    return before


@torch.no_grad()
def restore(model: WorldTransformer, before: Mapping[str, Tensor]) -> None:
    """Puts back what `merge_lora` returned."""
    own = model.state_dict()
    for name, value in before.items():
        own[name].copy_(value)


def _check_belongs(model: WorldTransformer, lora: Lora, name: str) -> None:
    whose = f"{lora.folder}: a LoRA of {lora.base}"
    if lora.base_sha256 and lora.base_sha256 != (found := weights_hash(model.state_dict())):
        raise LoraError(
            f"{whose}, whose weights are {lora.base_sha256[:12]}, and those of {name} are {found[:12]}; "
            "give the model that it was trained on"
        )
    _check_pairs(lora)
    modules = dict(model.named_modules())
    for key, weight in lora.weights.items():
        layer, _, part = key.partition(".lora_")
        found = modules.get(layer)
        if not isinstance(found, nn.Linear):
            raise LoraError(f"{whose}, and {name} has no linear layer {layer}; give {lora.base}")
        ours, theirs = (
            (found.in_features, weight.shape[1])
            if part == "A.weight"
            else (found.out_features, weight.shape[0])
        )
        if ours != theirs:
            raise LoraError(
                f"{whose}, and {layer} of {name} has width {ours}, not {theirs}; give {lora.base}"
            )


def _check_pairs(lora: Lora) -> None:
    """Before anything of a model is touched: LoraError where the two halves of a layer's adapter, or they and
    adapter_config.json, do not go together."""
    for layer in sorted({key.partition(".lora_")[0] for key in lora.weights}):
        down, up = (lora.weights.get(f"{layer}.lora_{half}.weight") for half in "AB")
        if down is None or up is None:
            missing = "A" if down is None else "B"
            raise LoraError(f"{lora.folder}: {layer} has no lora_{missing}.weight; export or copy it again")
        ranks = {down.shape[0], up.shape[-1]}
        if not lora.config.rank_pattern:
            ranks.add(lora.config.r)
        if len(ranks) > 1:
            raise LoraError(
                f"{lora.folder}: {layer} has ranks {down.shape[0]} and {up.shape[-1]}, and {CONFIG_FILE} "
                f"says r={lora.config.r}; export or copy it again"
            )


def _peft_config(transformer: WorldTransformer, cfg: RunConfig) -> Any:
    assert cfg.train.lora is not None
    linear = [name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)]
    for target in cfg.train.lora.targets:
        if not any(target in name for name in linear):
            kinds = dict.fromkeys(".".join(p for p in n.split(".") if not p.isdigit()) for n in linear)
            raise LoraError(
                f"train.lora.targets: no linear layer is named {target}; there are {', '.join(kinds)}"
            )
    layers = [name for name in linear if any(target in name for target in cfg.train.lora.targets)]
    shapes = {name: tuple(parameter.shape) for name, parameter in transformer.named_parameters()}
    narrow = {name: min(shapes[f"{name}.weight"]) for name in layers}
    widest = max(narrow, key=narrow.__getitem__)
    if cfg.train.lora.rank > narrow[widest]:
        raise LoraError(
            f"train.lora.rank={cfg.train.lora.rank} is more than any of its layers has: {widest} has "
            f"{narrow[widest]}; use at most that"
        )
    return _config_of(layers, cfg, None)


def _config_of(layers: list[str], cfg: RunConfig, base: Mapping[str, str] | None) -> Any:
    assert cfg.train.lora is not None
    named = {"base_model_name_or_path": base["name"], "revision": HASHED + base["sha256"]} if base else {}
    return _peft().LoraConfig(
        r=cfg.train.lora.rank, lora_alpha=cfg.train.lora.alpha, target_modules=layers, **named
    )


def _peft() -> Any:
    try:
        with torch.device("cpu"):  # torchaudio, which it imports, keeps a tensor of the device of that moment
            import peft
    except ImportError:
        raise LoraError("LoRA needs peft, which is not installed; pip install 'worldmodel[lora]'") from None
    return peft
