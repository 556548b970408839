"""How a run trains: optimizer, workers, what each of them holds, commits. Imports without torch."""

from __future__ import annotations

from math import lcm
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from worldmodel.config_lora import LoraConfig
from worldmodel.config_part import Part

Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimConfig(Part):
    lr: float = Field(default=2e-3, gt=0)
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    weight_decay: float = Field(default=0.0, ge=0)
    clip_norm: float = Field(default=1.0, gt=0)
    warmup_steps: int = Field(default=50, ge=0)
    ema_target: float = Field(default=0.999, ge=0, lt=1)


class TrainConfig(Part):
    steps: int = Field(default=500, ge=1)
    workers: int = Field(default=2, ge=1)
    sequence_parallel: int = Field(
        default=1,
        ge=1,
        description="workers that share each clip's tokens, for contexts that one cannot hold (Ulysses)",
    )
    micro_batches: int = Field(
        default=2, ge=1, description="micro-batches of one global batch, at any number of workers"
    )
    precision: Literal["bf16", "fp32"] = "bf16"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    compile: Literal["auto", "always", "never"] = Field(
        default="auto", description="torch.compile the blocks, with FlexAttention; auto: on a GPU"
    )
    recompute: bool = Field(
        default=False, description="keep only what goes into a block and compute it again for backward"
    )
    fp8: bool = Field(
        default=False,
        description="matrix products of the blocks in 8 bits (torchao), on GPUs that have units for them; on "
        "a CPU emulated",
    )
    init: str = Field(
        default="", description="model to begin from: shipped name, exported folder or run; empty: anew"
    )
    lora: LoraConfig | None = Field(
        default=None, description="adapt the model of init by a LoRA; null: train all of its weights"
    )
    threads: int = Field(default=1, ge=1, description="CPU threads of one worker")
    gather: Literal["block", "step"] = Field(
        default="block",
        description="ZeRO-3 gathers weights and reduces gradients block by block, or all once a step, which "
        "takes up to 12 bytes a parameter more on each rank",
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(
        default=3,
        description="what each worker holds only its share of: 3 weights, gradients and optimizer, 2 the "
        "last two, 1 the optimizer, 0 nothing",
    )
    offload_optimizer: bool = Field(
        default=False,
        description="ZeRO-3 keeps and steps fp32 weights, moments and their average in the host's memory",
    )
    checkpoint_every: int = Field(default=100, ge=1)
    evaluate_every: int = Field(default=250, ge=1)
    evaluate_clips: int = Field(default=32, ge=0)
    tracker: Literal["none", "wandb", "mlflow", "trackio"] = Field(
        default="none", description="where rows go too; its address and login from its own environment"
    )
    max_failures: int = Field(
        default=3, ge=0, description="restarts of a broken worker group before the job fails"
    )
    keep_checkpoints: int = Field(default=2, ge=1, description="the last ones")
    keep_best: bool = Field(
        default=False,
        description="and, as RUN/best, the commit of lowest held-out error of those at evaluated steps",
    )

    @model_validator(mode="after")
    def _adapts(self) -> Self:
        if self.lora and not self.init:
            raise ValueError(
                "lora adapts another model, but init='' names none; give a shipped name, an exported "
                "folder or a run"
            )
        return self

    @model_validator(mode="after")
    def _fits_fp8(self) -> Self:
        if self.fp8 and self.lora:
            raise ValueError("fp8=true trains whole models, not a LoRA; set fp8=false")
        if self.fp8 and self.zero_stage == 3 and self.gather == "block" and not self.recompute:
            raise ValueError(
                "fp8=true keeps the weights that a block ran with until backward, so that gather=block would "
                "save nothing; set gather=step, recompute=true or zero_stage=2"
            )
        return self

    @model_validator(mode="after")
    def _finds_the_best(self) -> Self:
        if not self.keep_best:
            return self
        if not self.evaluate_clips:
            raise ValueError(
                "keep_best=true keeps the commit of lowest held-out error, and evaluate_clips=0 measures "
                "none; set evaluate_clips to 1 or more"
            )
        if self.steps > 1 and lcm(self.evaluate_every, self.checkpoint_every) >= self.steps:
            every = self.checkpoint_every
            remedy = f"evaluate_every={every}"
            if every >= self.steps:
                remedy = f"checkpoint_every below {self.steps}, and evaluate_every to the same"
            raise ValueError(
                f"keep_best=true chooses among commits at evaluated steps, and with evaluate_every="
                f"{self.evaluate_every} and checkpoint_every={self.checkpoint_every} there is none before "
                f"the last of {self.steps} steps; set {remedy}"
            )
        return self

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        needed = {"zero_stage": 3, "gather": "block"}
        for name, value in needed.items():
            if self.offload_optimizer and (given := getattr(self, name)) != value:
                raise ValueError(
                    f"offload_optimizer=true goes with {name}={value}, not {given}; set {name}={value} or "
                    "offload_optimizer=false"
                )
        if self.lora is not None and self.zero_stage in (1, 2):
            raise ValueError(
                f"lora goes with zero_stage=3 or 0, not {self.zero_stage}: frozen weights are in no partition"
            )
        return self
