"""Captions: what a transformers image-to-text model sees in a few frames of a clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from ray_jobs.labels.loading import Loaded, load_model, written
from ray_jobs.labels.models import LabelModel
from ray_jobs.labels.said import Guess

# H W pixels.

FRAMES = 3
MOST_TOKENS = 64
PROMPT = "Describe in one sentence what is to be seen in these frames of a video."


class Captioner:
    """Three ways, by what the model is:

    - it reads text (has a chat template): all frames of the clip in one prompt;
    - it reads a video as a stack of frames (GIT with temporal embeddings): that many frames;
    - it reads one picture: one caption a frame, and the one that agrees most with the others is taken.
    """

    def __init__(self, model: LabelModel, *, gpu: bool) -> None:
        self.loaded: Loaded = load_model(model, "AutoModelForImageTextToText", gpu=gpu)
        processor = self.loaded.processor
        self.special = set(processor.tokenizer.all_special_ids)
        self.stacked: int = getattr(self.loaded.model.config, "num_image_with_embedding", None) or 0
        self.is_chat = bool(getattr(processor, "chat_template", None))

    @property
    def num_frames(self) -> int:
        return self.stacked or FRAMES

    def caption(self, clips: Sequence[Sequence[np.ndarray]]) -> list[Guess]:
        """One guess a clip, from its uint8 RGB frames [H, W, 3] in order of time."""
        pictures = [[Image.fromarray(frame_HWC) for frame_HWC in clip] for clip in clips]
        if self.is_chat:
            return [self._of_chat(clip) for clip in pictures]
        if self.stacked:
            return [self._of_stack(clip) for clip in pictures]
        guesses = iter(self._of_pictures([picture for clip in pictures for picture in clip]))
        return [most_agreed([next(guesses) for _ in clip]) for clip in pictures]

    def _of_pictures(self, pictures: list[Image.Image]) -> list[Guess]:
        return self._generate(self.loaded.processor(images=pictures, return_tensors="pt"))

    def _of_stack(self, pictures: list[Image.Image]) -> Guess:
        frames = self.loaded.processor(images=pictures, return_tensors="pt")["pixel_values"]
        inputs = {"pixel_values": frames[None].to(self.loaded.device, self.loaded.model.dtype)}
        return self._generate(inputs)[0]

    def _of_chat(self, pictures: list[Image.Image]) -> Guess:
        processor = self.loaded.processor
        content = [*({"type": "image"} for _ in pictures), {"type": "text", "text": PROMPT}]
        asked = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        return self._generate(processor(text=[asked], images=[pictures], return_tensors="pt"))[0]

    @torch.inference_mode()
    def _generate(self, made: Any) -> list[Guess]:
        out = self.loaded.model.generate(
            **self.loaded.inputs(made),
            max_new_tokens=MOST_TOKENS,
            do_sample=False,
            num_beams=1,
            return_dict_in_generate=True,
            output_logits=True,
        )
        tokens, confidences = written(out, self.special)
        texts = self.loaded.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [Guess(" ".join(text.split()), c) for text, c in zip(texts, confidences, strict=True)]


def most_agreed(guesses: Sequence[Guess]) -> Guess:
    """The caption that shares most words with the others; of equals the one nearest the middle."""
    words = [set(guess.text.lower().split()) for guess in guesses]
    middle = (len(guesses) - 1) / 2

    def agreement(i: int) -> tuple[float, float]:
        shared = [len(words[i] & w) / max(1, len(words[i] | w)) for k, w in enumerate(words) if k != i]
        return sum(shared), -abs(i - middle)

    return guesses[max(range(len(guesses)), key=agreement)]
