"""What is wrong with a run before Ray, torch or a decoder is imported: a mistake should cost a second."""

from __future__ import annotations

from avtok.load import codec_spec
from avtok.spec import CodecSpec
from ray_jobs.blocks import check_latents
from ray_jobs.errors import UserError
from ray_jobs.models import check_beside, check_encoders, check_fp8, check_init, check_lora
from ray_jobs.run_folder import RunFolder
from ray_jobs.sources import read_sources
from worldmodel.config import DataConfig, RunConfig


def check_given(cfg: RunConfig) -> None:
    """UserError for a source that cannot be read, codecs that do not fit, a model to begin from or to compare
    with that is not there, a name that is taken."""
    if not cfg.data.sources:
        raise UserError("data.manifest: not set; give a folder or manifest: --set data.manifest=FOLDER")
    try:
        video, audio = codec_spec(cfg.codec.video), codec_spec(cfg.codec.audio)
    except ValueError as error:
        raise UserError(str(error)) from None
    check_codecs(video, audio, cfg.data)
    check_latents(cfg, video, audio)
    check_beside(cfg.rollout.beside)
    check_init(cfg.train.init)
    check_lora(cfg.train.lora)
    check_fp8(fp8=cfg.train.fp8)
    check_encoders(cfg.data.targets)  # actors run them, followed or not
    folder = RunFolder(cfg)
    folder.check_free(cfg)
    if not folder.config.exists():
        read_sources([source.manifest for source in cfg.data.sources])


def check_codecs(video: CodecSpec, audio: CodecSpec, data: DataConfig) -> None:
    """UserError when the codecs are for something else than the data are decoded to."""
    problems = [
        f"codec.{modality}: {codec.name} is a codec of {codec.modality}; give one of {modality}"
        for modality, codec in (("video", video), ("audio", audio))
        if codec.modality != modality
    ]
    if problems:  # their rates would say nothing
        raise UserError(*problems)
    if video.rate_hz != data.fps:
        problems.append(f"data.fps={data.fps}, codec {video.name} needs {video.rate_hz}")
    if audio.rate_hz != data.sample_rate:
        problems.append(f"data.sample_rate={data.sample_rate}, codec {audio.name} needs {audio.rate_hz}")
    if problems:
        raise UserError(*problems)
