"""Transformers models from local folders: nothing is fetched, no code runs, no weight is made up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ray_jobs.errors import UserError
from ray_jobs.labels.models import LabelModel

UNUSED = ("masked_spec_embed",)  # of training alone; most fine-tuned folders lack it


@dataclass(frozen=True)
class Loaded:
    """A model in evaluation mode, and what makes its inputs and reads its outputs."""

    model: Any
    processor: Any
    device: torch.device

    def inputs(self, made: Any) -> dict[str, Any]:
        """On the model's device, in its precision."""
        return dict(made.to(self.device, self.model.dtype)) if hasattr(made, "to") else dict(made)


@dataclass(frozen=True)
class PictureProcessor:
    """For families that have no processor of their own, such as VisionEncoderDecoderModel."""

    image_processor: Any
    tokenizer: Any

    def __call__(self, *, images: Any, return_tensors: str) -> Any:
        return self.image_processor(images=images, return_tensors=return_tensors)


def load_model(model: LabelModel, auto_class: str, *, gpu: bool) -> Loaded:
    """UserError for a folder whose weights or processor do not load, or lack tensors."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    device = torch.device("cuda" if gpu and torch.cuda.is_available() else "cpu")
    precision = "auto" if device.type == "cuda" else torch.float32
    try:
        processor = transformers.AutoProcessor.from_pretrained(model.path, local_files_only=True)
        if model.kind == "captioner" and not hasattr(processor, "image_processor"):
            processor = PictureProcessor(
                transformers.AutoImageProcessor.from_pretrained(model.path, local_files_only=True),
                transformers.AutoTokenizer.from_pretrained(model.path, local_files_only=True),
            )
        network, facts = getattr(transformers, auto_class).from_pretrained(
            model.path, local_files_only=True, dtype=precision, output_loading_info=True
        )
    except Exception as error:  # of the library and of those below it: they have no class in common
        raise UserError(f"{model.path}: does not load: {first_line(error)}") from None
    missing = sorted(name for name in facts["missing_keys"] if not name.endswith(UNUSED))
    if missing:  # transformers would fill them with noise, and the labels too
        raise UserError(
            f"{model.path}: its weights lack {len(missing)} tensors, such as {missing[0]}; save it "
            "again whole"
        )
    return Loaded(network.eval().requires_grad_(False).to(device), processor, device)


def first_line(error: BaseException) -> str:
    said = str(error).strip().splitlines()
    return f"{type(error).__name__}: {said[0]}" if said else type(error).__name__


def written(out: Any, special: set[int]) -> tuple[list[list[int]], list[float]]:
    """What `generate` wrote, greedily, for each row: its tokens and their mean probability.

    Prompts come in front of what is written, and padding after it, in all families alike.
    """
    logits: tuple[Tensor, ...] = out.logits
    tokens_BL = out.sequences[:, -len(logits) :]
    rows, confidences = [], []
    for i, tokens_L in enumerate(tokens_BL.tolist()):
        kept = [(step, token) for step, token in enumerate(tokens_L) if token not in special]
        rows.append([token for _, token in kept])
        told = [float(logits[step][i].float().softmax(-1)[token]) for step, token in kept]
        confidences.append(sum(told) / len(told) if told else 0.0)
    return rows, confidences
