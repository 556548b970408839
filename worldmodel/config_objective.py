"""The objective of a run: what is followed, at which noise. Imports without torch."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from worldmodel.config_part import Part


class TimeConfig(Part):
    """p(t) of one modality; t=0 is data, t=1 is noise."""

    distribution: Literal["uniform", "logit_normal", "plateau"] = Field(
        default="uniform", description="plateau: logit-normal whose density stays at its peak beyond it"
    )
    shift: float = Field(default=1.0, gt=0, description="time shift a in a*t / (1 + (a-1)*t)")
    sigma: float = Field(default=1.0, gt=0, description="spread of the normal, before its logistic")
    noisiest: float = Field(default=0.0, ge=0, le=1, description="share of draws from U[0.95, 1] instead")


class NoiseConfig(Part):
    """How noise levels are drawn; t=0 is data, t=1 is noise. `as_published` is one chunk, v, uniform rows."""

    history_rows: float = Field(default=0.6, ge=0, le=1)
    independent_rows: float = Field(default=0.3, ge=0, le=1)
    context_chunk: float = Field(
        default=0.6, ge=0, le=1, description="probability that a chunk of a history row is context"
    )
    context_noise: float = Field(
        default=0.15, ge=0, le=1, description="context chunks get t ~ U[0, context_noise]"
    )
    tied: float = Field(default=0.5, ge=0, le=1, description="modalities share t and s")
    independent: float = Field(default=0.3, ge=0, le=1)
    distribution: Literal["uniform", "logit_normal", "plateau"] = "uniform"
    shift: float = Field(default=1.0, gt=0, description="time shift a in a*t / (1 + (a-1)*t)")
    video: TimeConfig | None = Field(default=None, description="null: distribution and shift, as above")
    audio: TimeConfig | None = None
    image: TimeConfig | None = Field(default=None, description="of stills; null: as video")
    first_frame: float = Field(
        default=0.0, ge=0, le=1, description="share of clips whose first latent step of picture is given"
    )
    first_frame_noise: float = Field(
        default=0.2, ge=0, le=1, description="with t ~ U[0, first_frame_noise], and without loss"
    )

    def times(self, modality: Literal["video", "audio", "image"]) -> TimeConfig:
        """p(t) of a modality."""
        own = {"video": self.video, "audio": self.audio, "image": self.image or self.video}[modality]
        return own or TimeConfig(distribution=self.distribution, shift=self.shift)

    @model_validator(mode="after")
    def _sums(self) -> Self:
        if self.history_rows + self.independent_rows > 1 + 1e-9:
            raise ValueError(
                f"history_rows={self.history_rows} and independent_rows={self.independent_rows} "
                f"add up to more than 1"
            )
        if self.tied + self.independent > 1 + 1e-9:
            raise ValueError(f"tied={self.tied} and independent={self.independent} add up to more than 1")
        return self


class SelfFlowConfig(Part):
    """One step serves Self-Flow and its baselines by switches (arXiv 2603.06507)."""

    dual: bool = True
    rep: Literal["none", "ema", "layersync", "repa", "velocity_heads"] = Field(
        default="ema",
        description="what features follow: nothing, the EMA teacher, a later layer (LayerSync), frozen "
        "encoders of data.targets (REPA, arXiv 2410.06940), or a velocity of their own",
    )
    teacher_t: Literal["min", "offset", "same"] = Field(
        default="min", description="what the teacher sees: min(t, s), t - U[0, teacher_offset], or the same"
    )
    teacher_offset: float = Field(default=0.2, gt=0, le=1)
    teacher_shuffled: bool = Field(
        default=False, description="control: features of another clip of the micro-batch as targets"
    )
    attention_separation: bool = Field(
        default=False, description="tokens at t and at s see conditions and their own kind only"
    )
    mask_ratio_video: float = Field(default=0.1, ge=0, le=0.5)
    mask_ratio_audio: float = Field(default=0.5, ge=0, le=0.5)
    mask_ratio_image: float = Field(default=0.25, ge=0, le=0.5, description="of stills")
    align_weight: float = Field(default=0.8, ge=0)
    student_layer: float = Field(default=0.3, gt=0, le=1, description="fraction of the depth")
    teacher_layer: float = Field(default=0.7, gt=0, le=1, description="fraction of the depth")
    prediction: Literal["x", "v"] = "x"
    loss_min_t: float = Field(
        default=0.05, ge=0.05, le=1, description="x-prediction weighs errors by 1 / max(t, loss_min_t)^2"
    )
    video_weight: float = Field(default=1.0, ge=0)
    audio_weight: float = Field(default=1.0, ge=0)
    image_weight: float = Field(default=1.0, ge=0, description="of stills, instead of video_weight")
    picture_alone: float = Field(default=0.0, ge=0, le=1, description="micro-batches trained without sound")
    sound_alone: float = Field(default=0.0, ge=0, le=1, description="micro-batches trained without picture")
    text_drop: float = Field(default=0.1, ge=0, le=1, description="clips that are trained without caption")
    speech_drop: float = Field(default=0.1, ge=0, le=1, description="and without transcript")
    action_drop: float = Field(default=0.0, ge=0, le=1, description="and without actions")
    condition_drop: float = Field(default=0.0, ge=0, le=1, description="and without any of the three")
    noise: NoiseConfig = NoiseConfig()

    @property
    def has_teacher(self) -> bool:
        return self.rep == "ema"

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.picture_alone + self.sound_alone > 1 + 1e-9:
            raise ValueError(
                f"picture_alone={self.picture_alone} and sound_alone={self.sound_alone} add up to more than 1"
            )
        if self.attention_separation and not self.dual:
            raise ValueError("attention_separation needs dual=true: without it there is one kind of token")
        if self.rep != "ema" and (self.teacher_shuffled or self.teacher_t != "min"):
            given = "teacher_shuffled=true" if self.teacher_shuffled else f"teacher_t={self.teacher_t}"
            raise ValueError(f"{given} is of a teacher, and with rep={self.rep} there is none; use rep=ema")
        return self
