"""One run as frozen data. Imports without torch, so that a job can be checked and submitted from a laptop."""

from __future__ import annotations

from math import gcd
from typing import Literal, Self

from pydantic import Field, model_validator

from worldmodel.config_lora import LoraConfig as LoraConfig
from worldmodel.config_objective import NoiseConfig as NoiseConfig
from worldmodel.config_objective import SelfFlowConfig as SelfFlowConfig
from worldmodel.config_objective import TimeConfig as TimeConfig
from worldmodel.config_part import Part as Part
from worldmodel.config_part import Size
from worldmodel.config_train import OptimConfig as OptimConfig
from worldmodel.config_train import TrainConfig as TrainConfig


class SourceConfig(Part):
    """One source of a mixture. Its share of the micro-batches is its weight over the sum of all weights."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    manifest: str = Field(min_length=1, description="as data.manifest")
    weight: float = Field(default=1.0, gt=0)


class PhaseConfig(Part):
    """A stretch of training with a mixture of its own (pre-, mid-, post-training), all in one plan."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    steps: int | None = Field(default=None, ge=1, description="null, for the last phase: to the end")
    weights: dict[str, float] = Field(
        default={}, description="source -> share; a source that is not named has none; empty: as in mixture"
    )


class BucketConfig(Part):
    """Clips of one length and size; micro-batches never mix buckets."""

    clip_s: float = Field(gt=0)
    size: Size


class LimitsConfig(Part):
    """What one untrusted file may take before its decoder is killed and the clip quarantined."""

    seconds: float = Field(default=120.0, gt=0, description="wall-clock time of one cut or probe")
    memory_mb: int = Field(default=4096, ge=256, description="address space of the decoder beyond its start")
    max_pixels: int = Field(default=8192 * 4352, ge=1, description="of one stored frame")
    max_file_gb: float = Field(default=64.0, gt=0)
    max_streams: int = Field(default=64, ge=1)


class FilterConfig(Part):
    """Filters and splits of the index; each one that is on decodes pictures once."""

    shots: bool = Field(default=False, description="cut files where the shot changes (PySceneDetect)")
    min_shot_s: float = Field(default=0.5, ge=0, description="shorter shots are left out")
    drop: tuple[Literal["static", "black", "silent", "duplicate"], ...] = ()
    max_drift_s: float | None = Field(
        default=None, gt=0, description="most that sound and picture may drift apart over a file"
    )
    min_side: int = Field(default=0, ge=0, description="pixels of the shorter side of the stored picture")


class LabelConfig(Part):
    """Local models that write what is missing; human labels win. Empty: none."""

    captioner: str = Field(default="", description="folder of a transformers image-to-text model")
    recognizer: str = Field(
        default="", description="folder of a transformers speech recogniser, or pocketsphinx"
    )
    aligner: str = Field(default="", description="folder of a transformers CTC model: when words are said")
    language: str = Field(default="", description="of speech, such as en; empty: the recogniser's own")
    min_confidence: float = Field(default=0.3, ge=0, le=1, description="below it a label is left out")


class TargetConfig(Part):
    """Features of a frozen encoder that travel with the latents, made by the same actors."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    encoder: str = Field(min_length=1, description="folder of a transformers image or sound encoder")
    modality: Literal["video", "audio"] = "video"
    width: int | None = Field(
        default=None, ge=1, description="of its features; null: read from the encoder when a run starts"
    )


class DataConfig(Part):
    """Where clips come from, how they are cut, and how many a micro-batch holds."""

    manifest: str = Field(
        default="",
        description="folder, CSV, JSON, JSONL, Parquet, WebDataset or LeRobot data set, local or s3:// or "
        "gs://; the demo fills it in",
    )
    mixture: tuple[SourceConfig, ...] = Field(default=(), description="several sources instead of manifest")
    phases: tuple[PhaseConfig, ...] = ()
    clip_s: float = Field(default=2.0, gt=0)
    fps: int = Field(default=16, gt=0)
    size: Size = (64, 64)
    sample_rate: int = Field(default=16000, gt=0)
    buckets: tuple[BucketConfig, ...] = Field(
        default=(), description="besides clip_s and size; a clip goes to the longest and nearest that fits"
    )
    batch_clips: int = Field(default=8, ge=1, description="clips of one planned micro-batch")
    batch_tokens: int | None = Field(
        default=None, ge=1, description="tokens of a micro-batch instead: short and small clips come in more"
    )
    held_out: float = Field(
        default=0.1, ge=0, lt=1, description="fraction of source files kept for evaluation"
    )
    cache: str = Field(default="", description="folder of the latent cache; empty: none")
    spool_gb: float = Field(
        default=8.0, gt=0, description="local copies of remote media on each node, least used ones go first"
    )
    decode_actors: int = Field(
        default=1, ge=0, description="decode and encode actors per training worker; 0: as measured"
    )
    encode_gpus: float = Field(
        default=0.0, ge=0, le=1, description="share of a GPU of each decode and encode actor; 0: CPU"
    )
    decoder: Literal["pyav", "torchcodec", "decord"] = "pyav"
    sandbox: bool = Field(default=True, description="decode in a process that can be killed")
    limits: LimitsConfig = LimitsConfig()
    filters: FilterConfig = FilterConfig()
    labels: LabelConfig = LabelConfig()
    targets: tuple[TargetConfig, ...] = ()
    max_quarantine_rate: float = Field(
        default=0.2, ge=0, le=1, description="the job fails when more clips than this are bad"
    )

    @property
    def chunk_s_step(self) -> float:
        return 1.0 / self.fps

    @property
    def sources(self) -> tuple[SourceConfig, ...]:
        """The mixture, or the one manifest; none when nothing is given."""
        if self.mixture or not self.manifest:
            return self.mixture
        return (SourceConfig(name="clips", manifest=self.manifest),)

    @model_validator(mode="after")
    def _mixes(self) -> Self:
        names = [source.name for source in self.mixture]
        if self.mixture and self.manifest:
            raise ValueError(f"give manifest={self.manifest} or mixture ({', '.join(names)}), not both")
        if len(set(names)) < len(names):
            raise ValueError(f"mixture names a source twice: {', '.join(sorted(names))}")
        targets = [target.name for target in self.targets]
        if twice := sorted({name for name in targets if targets.count(name) > 1}):
            raise ValueError(
                f"targets=[{', '.join(targets)}]: {', '.join(twice)} stands there twice; give each encoder "
                "a name of its own"
            )
        known = names or ["clips"]
        for number, phase in enumerate(self.phases, start=1):
            if unknown := sorted(set(phase.weights) - set(known)):
                raise ValueError(
                    f"phase {phase.name} weighs {', '.join(unknown)}; sources are {', '.join(known)}"
                )
            weights = phase.weights.values()
            if phase.weights and (min(weights) < 0 or not sum(weights) > 0):
                raise ValueError(f"phase {phase.name}: weights must be 0 or more, and one above 0")
            if (phase.steps is None) != (number == len(self.phases)):
                raise ValueError(
                    f"phase {phase.name}: every phase but the last needs steps, and the last goes to the end"
                )
        return self


class CodecConfig(Part):
    """Names of embedded codecs, or folders with codec.json."""

    video: str = "patchconv-4x8x8-48"
    audio: str = "spectral-32"


class ModelConfig(Part):
    """The joint transformer. `debug_cpu` is the default."""

    depth: int = Field(default=6, ge=1)
    width: int = Field(default=192, ge=8)
    head_dim: int = Field(default=48, ge=8)
    mlp_ratio: float = Field(default=4.0, gt=0)
    patch: Size = Field(default=(2, 2), description="video latents per token, height and width")
    audio_patch: int = Field(default=1, ge=1, description="audio latents per token")
    chunk_frames: int = Field(default=4, ge=1, description="video frames of one chunk")
    causal_stem: bool = Field(
        default=True, description="tokens also embed what was near them in the chunk before"
    )
    window_chunks: int = Field(default=8, ge=1)
    sink_chunks: int = Field(default=1, ge=0)
    text_tokens: int = Field(default=24, ge=1, description="bytes of caption that the model reads")
    speech_bytes: int = Field(
        default=0, ge=0, description="bytes of transcript that it reads, apart from the caption"
    )
    text_patch: int = Field(default=1, ge=1, description="bytes per text token")
    voices: tuple[str, ...] = Field(
        default=(), description="how captions of the training clips begin that name a speaker"
    )
    action_dim: int = Field(default=4, ge=1, description="padded width of one frame's action")
    action_modulation: bool = Field(
        default=False, description="actions also modulate every layer (adaLN), chunk by chunk"
    )

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.width % self.head_dim:
            low = self.width // self.head_dim * self.head_dim
            near = " or ".join(str(w) for w in (low, low + self.head_dim) if w > 0)
            raise ValueError(
                f"width={self.width} is not a multiple of head_dim={self.head_dim}; nearest: {near}"
            )
        if self.head_dim % 8:
            raise ValueError(
                f"head_dim={self.head_dim} must be a multiple of 8: rotary pairs for time, height and width"
            )
        for name in ("text_tokens", "speech_bytes"):
            if (given := getattr(self, name)) % self.text_patch:
                near = -(-given // self.text_patch) * self.text_patch
                raise ValueError(
                    f"{name}={given} is not a multiple of text_patch={self.text_patch}; use {near}"
                )
        return self


class RolloutConfig(Part):
    prefix_s: float = Field(default=1.0, gt=0)
    seconds: float = Field(default=1.0, gt=0, description="length of the continuation")
    steps: int = Field(default=8, ge=1, description="ODE steps a chunk")
    sound_lag: int = Field(default=0, ge=0, description="ODE steps by which sound follows the picture")
    context_noise: float = Field(default=0.05, ge=0, le=1)
    guidance_text: float = Field(default=1.0, ge=0, description="1 follows as trained, more exaggerates")
    guidance_text_chunks: int | None = Field(
        default=None,
        ge=1,
        description="first chunks of a clip in which guidance_text may exceed 1; null: all",
    )
    guidance_speech: float = Field(default=1.0, ge=0)
    guidance_actions: float = Field(default=1.0, ge=0)
    actors: int = Field(default=2, ge=1)
    sessions_per_actor: int = Field(default=16, ge=1)
    clips: int = Field(default=32, ge=1, description="held-out clips to continue")
    show: int = Field(default=4, ge=0, description="clips in the report")
    beside: tuple[str, ...] = Field(
        default=(), description="models that continue the shown clips too: shipped names, folders or runs"
    )


class RunConfig(Part):
    """One whole run. runs/<name>/ is its folder."""

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    storage: str = Field(
        default="runs", description="folder or s3:// or gs:// address that holds the run folders"
    )
    seed: int = Field(default=0, ge=0)
    data: DataConfig = DataConfig()
    codec: CodecConfig = CodecConfig()
    model: ModelConfig = ModelConfig()
    objective: SelfFlowConfig = SelfFlowConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    rollout: RolloutConfig = RolloutConfig()

    @property
    def chunk_s(self) -> float:
        """Seconds of one chunk."""
        return self.model.chunk_frames / self.data.fps

    @property
    def made(self) -> tuple[str, ...]:
        """Modalities that the model makes: "video", "audio" or both. What is never trained is no part of a
        clip."""
        alone = {"video": self.objective.picture_alone, "audio": self.objective.sound_alone}
        return tuple(name for name, share in alone.items() if share == 1) or tuple(alone)

    @property
    def num_chunks(self) -> int:
        """Chunks of one training clip."""
        return round(self.data.clip_s / self.chunk_s)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        chunks = self.data.clip_s / self.chunk_s
        longest = self.model.window_chunks + self.model.sink_chunks
        if abs(chunks - round(chunks)) > 1e-6 or chunks < 1:
            raise ValueError(
                f"data.clip_s={self.data.clip_s} is not a multiple of the chunk of {self.chunk_s} s "
                f"(model.chunk_frames / data.fps); nearest: {max(1, round(chunks)) * self.chunk_s}"
            )
        if chunks > longest:
            raise ValueError(
                f"data.clip_s={self.data.clip_s} is {round(chunks)} chunks, but "
                f"model.window_chunks + model.sink_chunks is {longest}; "
                f"use at most {longest * self.chunk_s} s"
            )
        for bucket in self.data.buckets:
            chunks = bucket.clip_s / self.chunk_s
            if abs(chunks - round(chunks)) > 1e-6 or not 1 <= round(chunks) <= longest:
                raise ValueError(
                    f"data.buckets: clip_s={bucket.clip_s} is not 1 to {longest} chunks of {self.chunk_s} s; "
                    f"nearest: {min(max(1, round(chunks)), longest) * self.chunk_s}"
                )
        self._shares()
        if self.train.keep_best and not self.data.held_out:
            raise ValueError(
                "train.keep_best=true keeps the commit of lowest held-out error, and data.held_out=0 holds "
                "nothing out; set data.held_out=0.1"
            )
        if self.objective.rep == "repa" and not self.data.targets:
            raise ValueError(
                "objective.rep=repa follows frozen encoders, but data.targets is empty; name one there, "
                "such as {name: dino, encoder: FOLDER}"
            )
        self._learns()
        self._follows()
        if self.rollout.prefix_s < self.chunk_s:
            raise ValueError(
                f"rollout.prefix_s={self.rollout.prefix_s} is shorter than one chunk of {self.chunk_s} s"
            )
        return self

    def _learns(self) -> None:
        """ValueError where nothing could be."""
        objective = self.objective
        weights = {
            "video": max(objective.video_weight, objective.image_weight),
            "audio": objective.audio_weight,
        }
        taught = [name for name in self.made if weights[name]]
        if not taught:
            of = {"video": ("video_weight", "image_weight"), "audio": ("audio_weight",)}
            zeros = ", ".join(f"objective.{w}=0" for name in self.made for w in of[name])
            raise ValueError(f"{zeros}: nothing would be learned; set one above 0")
        followed = {target.modality for target in self.data.targets}
        if objective.rep == "repa" and followed.isdisjoint(taught):
            raise ValueError(
                f"objective.rep=repa follows encoders of {' and '.join(sorted(followed))} (data.targets), "
                f"but only {' and '.join(taught)} is trained; name one of modality {taught[0]}"
            )

    def _follows(self) -> None:
        """ValueError where what features follow would be themselves."""
        objective, depth = self.objective, self.model.depth
        early, late = (
            max(1, round(part * depth)) for part in (objective.student_layer, objective.teacher_layer)
        )
        if objective.rep == "layersync" and early >= late:
            raise ValueError(
                f"objective.rep=layersync: layer {early} (objective.student_layer={objective.student_layer} "
                f"of model.depth={depth}) would follow layer {late} "
                f"(teacher_layer={objective.teacher_layer}), which is no later one; "
                "use a deeper model or layers further apart"
            )
        if objective.teacher_shuffled and (self.data.batch_clips < 2 or self.data.batch_tokens):
            given = f"batch_tokens={self.data.batch_tokens}" if self.data.batch_tokens else "batch_clips=1"
            raise ValueError(
                f"objective.teacher_shuffled=true takes another clip of the micro-batch, and with "
                f"data.{given} there may be none; set data.batch_clips to 2 or more alone"
            )

    def _shares(self) -> None:
        """ValueError where train.sequence_parallel does not divide what is shared."""
        ranks = self.train.sequence_parallel
        clips = [self.data.clip_s, *(bucket.clip_s for bucket in self.data.buckets)]
        shared = {
            "workers (train.workers)": self.train.workers,
            "attention heads (model.width / model.head_dim)": self.model.width // self.model.head_dim,
            **{f"chunks of a clip of {clip_s} s": round(clip_s / self.chunk_s) for clip_s in clips},
        }
        common = gcd(*shared.values())
        for what, number in shared.items():
            if number % ranks:
                fitting = max(n for n in range(1, ranks) if common % n == 0)
                raise ValueError(
                    f"train.sequence_parallel={ranks} does not divide the {number} {what}; use {fitting}"
                )
