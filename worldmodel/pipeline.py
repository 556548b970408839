"""Prompt -> clip with sound, in this process.

    WorldModelPipeline.from_pretrained("bounce")("a red steel ball").save("clip.mp4")

Arguments have diffusers' names. The same seed gives the same latents and frames wherever it is called from.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avtok.load import load_codec
from worldmodel.batch import LatentBatch, ModalityLatents
from worldmodel.config import RolloutConfig, RunConfig
from worldmodel.export import codecs_of, load_model
from worldmodel.layout import LEARNED
from worldmodel.lora import merge_lora, read_lora, restore
from worldmodel.model.text import encode_texts
from worldmodel.model.transformer import WorldTransformer
from worldmodel.model_folder import model_folder
from worldmodel.prompt import Prompt
from worldmodel.session import Latents, RolloutSessions

# T frames, H W pixels, N samples, K chunks.

Media = str | Path | np.ndarray
Progress = Callable[[int, int], None]


class BadRequest(ValueError):
    """What was asked cannot be made by this model; one line says what, what was given, and what to do."""


@dataclass(frozen=True, eq=False)
class Clip:
    """frames uint8 RGB [T, H, W, 3], audio float32 mono [N]; black or silent where the model was trained
    without them, as `made` says. seed makes it again, and sha256 (of latents and frames) tells whether it is
    the same."""

    frames: np.ndarray
    audio: np.ndarray
    frame_rate: int
    sampling_rate: int
    prompt: Prompt
    seed: int
    latents: Latents
    sha256: str
    made: tuple[str, ...] = LEARNED

    def save(self, path: str | Path) -> Path:
        """Writes an .mp4 with sound; without a track of what the model does not make."""
        from avtok.mux import write_clip

        Path(path).parent.mkdir(parents=True, exist_ok=True)
        frames = self.frames if "video" in self.made else None
        sound = self.audio if "audio" in self.made else None
        write_clip(path, frames, sound, fps=self.frame_rate, sample_rate=self.sampling_rate)
        return Path(path)


@dataclass(frozen=True)
class Given:
    """What a clip is made from besides the prompt: whole chunks of a beginning, or the sound of all of it."""

    frames_THWC: np.ndarray | None = None
    audio_N: np.ndarray | None = None
    whole_audio_N: np.ndarray | None = None

    @property
    def num_frames(self) -> int:
        return 0 if self.frames_THWC is None else len(self.frames_THWC)


class WorldModelPipeline:
    def __init__(
        self, model: WorldTransformer, cfg: RunConfig, prediction: str, *, video: Any, audio: Any, name: str
    ) -> None:
        """video, audio: codecs as `avtok.load.load_codec` gives them."""
        self.model, self.cfg, self.prediction, self.name = model, cfg, prediction, name
        self.video, self.audio = video, audio
        self.without_lora: dict[str, Tensor] | None = None

    @classmethod
    def from_pretrained(cls, name: str | Path) -> WorldModelPipeline:
        """A shipped name, an exported folder, or a run. ValueError names what is missing."""
        folder = model_folder(str(name))
        model, cfg, prediction = load_model(folder)
        video, audio = codecs_of(folder, cfg)
        return cls(
            model, cfg, prediction, video=load_codec(video), audio=load_codec(audio), name=Path(name).name
        )

    def load_lora(self, folder: str | Path, *, scale: float = 1.0) -> None:
        """Generates with a LoRA, in place of one that is loaded. folder: its own, or a run that made one.
        scale: how much of it, 1 as trained. LoraError for one of another base."""
        lora = read_lora(folder)
        self.unload_lora()
        self.without_lora = merge_lora(self.model, lora, name=self.name, scale=scale)

    def unload_lora(self) -> None:
        """The model is again what it was, bit for bit."""
        if self.without_lora is not None:
            restore(self.model, self.without_lora)
        self.without_lora = None

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Prompt,
        *,
        image: Media | None = None,
        video: Media | None = None,
        audio: Media | None = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        frame_rate: float | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        speech_guidance_scale: float | None = None,
        seed: int | None = None,
        progress: Progress | None = None,
    ) -> Clip:
        """Makes one clip.

        image: its first picture. video: its beginning, with the file's sound. audio: its sound, which the
        picture is made for; with `video`, the sound of the beginning. Each is a file, or an array at the
        model's size and rates. num_frames: of the whole clip; default: as many as it was trained on, after
        at most as many of `video`. seed: default: drawn anew. BadRequest or PromptError for what this model
        cannot make.
        """
        prompt = prompt if isinstance(prompt, Prompt) else Prompt.parse(prompt)
        prompt.check(self.cfg.model)
        data, chunk = self.cfg.data, self.cfg.model.chunk_frames
        self._check_size(height, width, frame_rate)
        trained = round(data.clip_s * data.fps)
        asked, num_frames = num_frames, trained if num_frames is None else num_frames
        if num_frames < 1 or num_frames % chunk:
            near = max(chunk, round(num_frames / chunk) * chunk)
            raise BadRequest(
                f"num_frames={num_frames} is not a multiple of {chunk} from {chunk} on; use {near}"
            )
        given = self._given(image, video, audio, num_frames)
        if asked is None and video is not None:
            num_frames += given.num_frames
        if given.num_frames >= num_frames:
            raise BadRequest(
                f"the beginning fills all of num_frames={num_frames}; give less, or ask for more frames"
            )
        if seed is not None and seed < 0:
            raise BadRequest(f"seed={seed} is below 0; use 0 or more")
        seed = secrets.randbits(31) if seed is None else seed
        rollout = self._rollout(num_inference_steps, guidance_scale, speech_guidance_scale)
        with one_thread():
            latents = self._latents(prompt, given, num_frames // chunk, seed, rollout, progress)
            frames, sound = self._decoded(latents, num_frames)
        digest = hashlib.sha256(latents.video.numpy().tobytes() + latents.audio.numpy().tobytes())
        digest.update(np.ascontiguousarray(frames).tobytes())
        sha256, made = digest.hexdigest(), self.cfg.made
        return Clip(frames, sound, data.fps, data.sample_rate, prompt, seed, latents, sha256, made)

    def _decoded(self, latents: Latents, num_frames: int) -> tuple[np.ndarray, np.ndarray]:
        """Frames and sound; black, or silent, where the model makes none."""
        data, made = self.cfg.data, self.cfg.made
        if "video" not in made:
            frames = np.zeros((num_frames, *data.size, 3), np.uint8)
        else:
            frames = np.asarray(self.video.decode(latents.video[0]))
        if "audio" not in made:
            return frames, np.zeros(num_frames * data.sample_rate // data.fps, np.float32)
        return frames, np.asarray(self.audio.decode(latents.audio[0]), dtype=np.float32)

    def _rollout(self, steps: int | None, caption: float | None, speech: float | None) -> RolloutConfig:
        """The model's own with what is given instead."""
        given = {"steps": steps, "guidance_text": caption, "guidance_speech": speech}
        given = {name: value for name, value in given.items() if value is not None}
        if given.get("steps", 1) < 1 or min(given.values(), default=0) < 0:
            raise BadRequest(
                f"num_inference_steps must be at least 1 and guidance at least 0, got {steps}, {caption} "
                f"and {speech}"
            )
        return self.cfg.rollout.model_copy(update=given)

    def _latents(
        self,
        prompt: Prompt,
        given: Given,
        num_chunks: int,
        seed: int,
        rollout: RolloutConfig,
        progress: Progress | None,
    ) -> Latents:
        first = given.num_frames // self.cfg.model.chunk_frames
        sessions = RolloutSessions(self.model, rollout, self.prediction, self.cfg.made)
        sessions.reset(self._batch(prompt, given, num_chunks), prefix_chunks=first, seeds=[seed])
        for index in range(first, num_chunks):
            sessions.step(given=() if given.whole_audio_N is None else ("audio",))
            if progress:
                progress(index + 1 - first, num_chunks - first)
        return sessions.latents()

    def _batch(self, prompt: Prompt, given: Given, num_chunks: int) -> LatentBatch:
        """What is given as latents of the whole clip; the rest is absent."""
        layout, model = self.model.layout.of(num_chunks=num_chunks, text=True), self.cfg.model
        frames = num_chunks * layout.chunk_frames
        rows, columns = (grid * patch for grid, patch in zip(layout.video_grid, layout.patch, strict=True))
        sound = given.audio_N if given.whole_audio_N is None else given.whole_audio_N
        return LatentBatch(
            epoch=-1,
            batch_id=-1,
            sample_ids_B=torch.zeros(1, dtype=torch.int64),
            video=_whole(
                None if given.frames_THWC is None else self.video.encode(given.frames_THWC),
                (num_chunks * layout.video_steps, rows, columns, layout.video_channels),
            ),
            audio=_whole(
                None if sound is None else self.audio.encode(sound),
                (num_chunks * layout.audio_steps, layout.audio_channels),
            ),
            text_BN=encode_texts(
                prompt.caption,
                prompt.speech,
                caption_bytes=model.text_tokens,
                speech_bytes=model.speech_bytes,
            )[None],
            actions_BFA=torch.zeros(1, frames, model.action_dim),
            actions_valid_BF=torch.zeros(1, frames, dtype=torch.bool),
        )

    def _check_size(self, height: int | None, width: int | None, frame_rate: float | None) -> None:
        data = self.cfg.data
        asked, made = (height or data.size[0], width or data.size[1]), tuple(data.size)
        if asked != made:
            raise BadRequest(
                f"{asked[0]}x{asked[1]} is asked, and {self.name} makes {made[0]}x{made[1]}; use that"
            )
        if frame_rate not in (None, data.fps):
            raise BadRequest(f"frame_rate={frame_rate} is asked, and {self.name} makes {data.fps}; use that")

    def _given(self, image: Media | None, video: Media | None, audio: Media | None, num_frames: int) -> Given:
        if audio is not None and "audio" not in self.cfg.made:
            raise BadRequest(f"audio is given, and {self.name} was trained without sound; leave it out")
        if (image is not None or video is not None) and "video" not in self.cfg.made:
            raise BadRequest(f"a picture is given, and {self.name} was trained without any; leave it out")
        if image is not None and video is not None:
            raise BadRequest("image and video are both given as the beginning; give one of them")
        if image is not None:
            frames, _ = self._media("image", image, self.cfg.model.chunk_frames)
            if frames is None:
                raise BadRequest(f"image {_name(image)}: holds no picture")
            still = np.repeat(frames[:1], self.cfg.model.chunk_frames, axis=0)
            return Given(still, whole_audio_N=self._whole_sound(audio, num_frames))
        if video is None:
            return Given(whole_audio_N=self._whole_sound(audio, num_frames))
        frames, sound = self._media("video", video, num_frames)
        if frames is None:
            raise BadRequest(f"video {_name(video)}: holds no picture; give sound as audio")
        whole = len(frames) // self.cfg.model.chunk_frames * self.cfg.model.chunk_frames
        if not whole:
            raise BadRequest(
                f"video {_name(video)}: {len(frames)} frames are less than a chunk of "
                f"{self.cfg.model.chunk_frames}"
            )
        samples = whole * self.cfg.data.sample_rate // self.cfg.data.fps
        if audio is not None:
            sound = self._whole_sound(audio, whole)
        has_sound = sound is not None and len(sound) >= samples
        return Given(frames[:whole], sound[:samples] if has_sound and sound is not None else None)

    def _whole_sound(self, audio: Media | None, num_frames: int) -> np.ndarray | None:
        if audio is None:
            return None
        _, sound = self._media("audio", audio, num_frames)
        samples = num_frames * self.cfg.data.sample_rate // self.cfg.data.fps
        if sound is None or len(sound) < samples:
            seconds = 0.0 if sound is None else len(sound) / self.cfg.data.sample_rate
            raise BadRequest(
                f"audio {_name(audio)}: {seconds:.2f} s of sound for a clip of "
                f"{num_frames / self.cfg.data.fps:.2f} s; give more, or ask for fewer frames"
            )
        return sound[:samples]

    def _media(self, what: str, media: Media, num_frames: int) -> tuple[np.ndarray | None, np.ndarray | None]:
        """At most num_frames of it: frames and sound at the model's size and rates."""
        data = self.cfg.data
        if isinstance(media, np.ndarray):
            if what == "audio":
                return None, _checked(what, media, (None,), np.float32)
            media = media[None] if media.ndim == 3 else media
            return _checked(what, media, (None, *data.size, 3), np.uint8)[:num_frames], None
        from avtok.decode import ClipError, decode_clip, probe

        try:
            info = probe(str(media))
            length_s = num_frames / data.fps
            end_s = min(length_s, info.duration_s) if info.duration_s else length_s
            clip = decode_clip(
                str(media),
                start_s=0.0,
                end_s=max(1, round(end_s * data.fps)) / data.fps,
                fps=data.fps,
                size=data.size,
                sample_rate=data.sample_rate,
            )
        except ClipError as error:
            raise BadRequest(f"{what} {error}") from None
        return clip.video_THWC, clip.audio_N if info.has_sound else None


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums over several threads add up in another order: the same seed would give other bits on a machine
    with more cores, or in an actor, which has one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _whole(latents: Tensor | None, shape: tuple[int, ...]) -> ModalityLatents:
    """Latents of a beginning at the start of a clip of `shape`; what is missing is not valid."""
    whole = torch.zeros(1, *shape)
    there = 0 if latents is None else len(latents)
    if latents is not None:
        whole[0, :there] = latents
    valid_BT = (torch.arange(shape[0]) < there)[None]
    return ModalityLatents(whole, valid_BT, valid_BT.clone(), torch.zeros(shape[0], 2))


def _checked(what: str, array: np.ndarray, shape: tuple[int | None, ...], dtype: type) -> np.ndarray:
    fits = array.ndim == len(shape) and all(s in (None, a) for s, a in zip(shape, array.shape, strict=True))
    if not fits or array.dtype != dtype or not np.isfinite(array).all():
        wanted = ", ".join("any" if s is None else str(s) for s in shape)
        raise BadRequest(
            f"{what} must be finite {np.dtype(dtype).name} of [{wanted}], got {array.dtype} of "
            f"{list(array.shape)}"
        )
    return array


def _name(media: Media) -> str:
    return "array" if isinstance(media, np.ndarray) else str(media)
