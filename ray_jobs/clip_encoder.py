"""One planned clip -> its latents and targets. A long clip is decoded and encoded piece by piece."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from avtok.decode import ClipError, DecodedClip
from avtok.load import load_codec
from avtok.spec import CodecSpec
from ray_jobs.errors import UserError
from ray_jobs.metrics import RunMetrics
from ray_jobs.plan import Sample
from ray_jobs.preflight import check_codecs
from ray_jobs.readers import bytes_read, kills_of, local_file, reader_of
from ray_jobs.targets import Targets
from worldmodel.config import DataConfig, RunConfig

# T latent steps, H W latent rows and columns, C channels.

PIECE_S = 4.0  # pixels of longer clips are never in memory together
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Geometry:
    """Shapes of the clips of one bucket."""

    size: tuple[int, int]
    num_frames: int
    video_steps: int
    audio_steps: int

    @classmethod
    def of(
        cls, clip_s: float, size: tuple[int, int], data: DataConfig, video: CodecSpec, audio: CodecSpec
    ) -> Geometry:
        num_frames = round(clip_s * data.fps)
        samples = round(clip_s * data.sample_rate)
        return cls(size, num_frames, video.steps_of_units(num_frames), audio.steps_of_units(samples))


class ClipEncoder:
    """Reader, codecs and frozen encoders of one process. device: of codecs and encoders."""

    def __init__(self, cfg: RunConfig, *, device: str = "cpu") -> None:
        self.data, self.chunk_s = cfg.data, cfg.chunk_s
        try:
            self.video: Any = load_codec(cfg.codec.video, device=device)
            self.audio: Any = load_codec(cfg.codec.audio, device=device)
        except ValueError as error:
            raise UserError(str(error)) from None
        check_codecs(self.video.spec, self.audio.spec, cfg.data)
        self.targets = Targets.load(cfg, self.video.spec, self.audio.spec, device=device)
        self.reader, self.metrics = reader_of(cfg.data), RunMetrics(cfg.name)
        self._num_kills = kills_of(self.reader)

    def encode(self, sample: Sample, geometry: Geometry) -> Arrays:
        """Float16 latents and targets of the whole steps that hold media, zeros and invalid behind them.

        ClipError for a clip that cannot be used; it names the address that the plan names.
        """
        valid_s = self._whole_steps_s(sample, geometry)
        paths = {uri: local_file(uri, self.data) for uri in (sample.uri, sample.audio_uri) if uri}
        try:
            arrays = self._encode_pieces(sample, paths, geometry, valid_s)
        except ClipError as error:
            self.metrics.killed(kills_of(self.reader) - self._num_kills)
            self._num_kills, said = kills_of(self.reader), str(error)
            for uri, path in paths.items():
                said = said.replace(path, uri)
            raise ClipError(said) from error
        if not arrays:
            raise ClipError(f"{sample.uri}: neither picture nor sound where the manifest promised them")
        return arrays

    def empty(self, geometry: Geometry) -> Arrays:
        """What `encode` gives, of a clip that is not there."""
        video_shape = self.video.spec.latent_shape(geometry.video_steps, geometry.size)
        latents = {
            "video": np.zeros(video_shape, dtype=np.float16),
            "video_valid": np.zeros(geometry.video_steps, dtype=bool),
            "audio": np.zeros(self.audio.spec.latent_shape(geometry.audio_steps), dtype=np.float16),
            "audio_valid": np.zeros(geometry.audio_steps, dtype=bool),
        }
        return latents | self.targets.empty(geometry)

    def _whole_steps_s(self, sample: Sample, geometry: Geometry) -> float:
        data, video, audio = self.data, self.video.spec, self.audio.spec
        # half a frame of slack: containers round a duration
        whole = video.steps_of_units(int((sample.valid_s + 0.5 / data.fps) * data.fps))
        valid_s = video.units_of_steps(min(whole, geometry.video_steps)) / data.fps
        if not sample.has_video:
            whole = audio.steps_of_units(round(sample.valid_s * data.sample_rate))
            valid_s = audio.units_of_steps(min(whole, geometry.audio_steps)) / data.sample_rate
        if not whole:
            raise ClipError(f"{sample.uri}: {sample.valid_s:.3f} s is shorter than one latent step")
        return valid_s

    def _encode_pieces(
        self, sample: Sample, paths: dict[str, str], geometry: Geometry, valid_s: float
    ) -> Arrays:
        arrays, made = self.empty(geometry), set[str]()
        context_frames, context_samples = self._context()
        for from_s, to_s in self._pieces(valid_s):
            began, read_before = time.perf_counter(), bytes_read(self.reader)
            clip = self.reader.decode_clip(
                paths[sample.uri],
                start_s=sample.start_s + from_s,
                end_s=sample.start_s + to_s,
                fps=self.data.fps,
                size=geometry.size,
                sample_rate=self.data.sample_rate,
                context_frames=context_frames,
                context_samples=context_samples,
                audio_uri=paths.get(sample.audio_uri),
            )
            decoded, num_read = time.perf_counter(), bytes_read(self.reader) - read_before
            parts = self._encode_piece(sample, clip, from_s, geometry)
            for name, (first, values) in parts.items():
                _put(arrays, name, first, values, sample.uri)
            made |= parts.keys()
            self.metrics.encoded(
                media_s=to_s - from_s,
                decode_s=decoded - began,
                encode_s=time.perf_counter() - decoded,
                read_bytes=max(0, num_read),  # below 0 where another process took its place
                pixel_bytes=0 if clip.video_THWC is None else clip.video_THWC.nbytes,
                latent_bytes=sum(2 * values.numel() for _, values in parts.values()),
            )
        return {name: array for name, array in arrays.items() if name.removesuffix("_valid") in made}

    def _context(self) -> tuple[int, int]:
        """Frames and samples before a piece that its latents depend on."""
        return self.video.spec.left_context_units, self.audio.spec.left_context_units

    def _pieces(self, valid_s: float) -> Iterator[tuple[float, float]]:
        """[from, to) of whole chunks, which are whole steps of both codecs. One where a step stands alone."""
        piece_s = max(1, int(PIECE_S / self.chunk_s + 1e-6)) * self.chunk_s
        specs = (self.video.spec, self.audio.spec)
        if any(spec.first_units != spec.stride_units for spec in specs):
            piece_s = valid_s
        count = max(1, int(np.ceil(valid_s / piece_s - 1e-6)))
        for number in range(count):
            yield number * piece_s, min((number + 1) * piece_s, valid_s)

    def _encode_piece(
        self, sample: Sample, clip: DecodedClip, from_s: float, geometry: Geometry
    ) -> dict[str, tuple[int, torch.Tensor]]:
        """Name -> (first step, values of the piece)."""
        made: dict[str, tuple[int, torch.Tensor]] = {}
        if sample.has_video and clip.video_THWC is not None:
            spec, context = self.video.spec, self.video.spec.steps_of_units(clip.context_frames)
            first = spec.steps_of_units(round(from_s * self.data.fps))
            made["video"] = first, self.video.encode(clip.video_THWC)[context:]
            shown_THWC = clip.video_THWC[clip.context_frames :]
            made |= self.targets.of_picture(shown_THWC, first, geometry)
        if sample.has_sound and clip.audio_N is not None:  # silence would teach that the world is silent
            first = self.audio.spec.steps_of_units(round(from_s * self.data.sample_rate))
            made["audio"] = (
                first,
                self.audio.encode(clip.audio_N, context_samples=clip.context_samples),
            )
            made |= self.targets.of_sound(clip.audio_N[clip.context_samples :], first)
        return made


def _put(arrays: Arrays, name: str, first: int, values: torch.Tensor, uri: str) -> None:
    half = values[: len(arrays[name]) - first].half()
    if not torch.isfinite(half).all():
        raise ClipError(f"{uri}: its {name} latents are not finite")
    arrays[name][first : first + len(half)] = half.numpy()
    arrays[f"{name}_valid"][first : first + len(half)] = True
