"""ZeroEngine on 2 gloo ranks against PlainEngine in one process: 20 losses of the default config, and EMA.

Both read the same latents of rendered clips and draw the same noise; in one step one rank has no sound.
Prediction: losses within 1e-3 in fp32 and 1e-2 in bf16 (bf16 weights and fp32 master on both sides); the
teacher's own weights within 1e-6 of an average that is computed in fp64 from the gathered fp32 weights, and
not where they began. Beside it stands how far PlainEngine is from itself when the clips of each micro-batch
come in reverse: the same sums in another order, so what rounding alone does.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from avtok.load import codec_spec
from ray_jobs.bench import Measured, run_ranks
from ray_jobs.dataset import local_stream
from ray_jobs.index import index_sources
from ray_jobs.plan import Plan, make_plan
from ray_jobs.render import render_clip
from worldmodel.batch import LatentBatch, ModalityLatents
from worldmodel.config import RunConfig
from worldmodel.layout import Layout
from worldmodel.load_config import dump_config, load_config
from worldmodel.train.engine import TEACHER_PREFIX, Engine, PlainEngine
from worldmodel.train.loop import Hooks, train
from worldmodel.train.optim import ema_decay
from worldmodel.train.zero_engine import ZeroEngine

LOSSES = 20
CLIPS = 64
SILENT = 7  # global index of the micro-batch without sound; odd, so it is rank 1's
PLACE = "FOLDER"  # stands for the temporary folder in the filed config
PRECISIONS = ("fp32", "bf16")
SMOKE = ["model.depth=2", "model.width=64", "model.head_dim=32", "data.batch_clips=4"]


def run(smoke: bool) -> Measured:
    """Three runs a precision: plain, plain with reversed clips, ZeRO-3 on two ranks."""
    steps, clips = (4, 16) if smoke else (LOSSES, CLIPS)
    with tempfile.TemporaryDirectory(prefix="worldmodel-bench-parity-") as place:
        folder = Path(place)
        cfg = _prepare(folder, steps=steps, clips=clips, overrides=SMOKE if smoke else [])
        for ranks in (1, 2):
            run_ranks(Path(__file__), ranks, [str(folder)], log=folder / "log.txt")
        found = {
            precision: {
                variant: json.loads((folder / f"{precision}-{variant}.json").read_text())
                for variant in ("plain", "reversed", "zero")
            }
            for precision in PRECISIONS
        }
    raw: dict[str, Any] = {"steps": steps, "silent_micro_batch": SILENT, "runs": found}
    for precision, runs in found.items():
        plain = runs["plain"]["losses"]
        raw[f"relative_loss_differences_{precision}"] = _relative(plain, runs["zero"]["losses"])
        raw[f"relative_loss_differences_of_rounding_alone_{precision}"] = _relative(
            plain, runs["reversed"]["losses"]
        )
    ema = found["fp32"]["zero"]["ema"]
    return Measured(
        figures={
            "max_relative_loss_difference_fp32": max(raw["relative_loss_differences_fp32"]),
            "max_relative_loss_difference_bf16": max(raw["relative_loss_differences_bf16"]),
            "ema_max_difference": ema["max_difference"],
            "ema_moved": ema["max_movement"] > 0,
        },
        raw=raw,
        n=steps,
        baseline={
            **{f"plain_losses_{precision}": found[precision]["plain"]["losses"] for precision in PRECISIONS},
            "ema_max_movement": ema["max_movement"],
        },
        config=dump_config(cfg).replace(str(folder), PLACE),
        log=_table(found),
    )


def _table(found: dict[str, Any]) -> str:
    """A line a step: the loss of PlainEngine, of PlainEngine with reversed clips and of ZeroEngine."""
    lines = []
    for precision, runs in found.items():
        columns = [runs[variant]["losses"] for variant in ("plain", "reversed", "zero")]
        for step, losses in enumerate(zip(*columns, strict=True)):
            lines.append(
                f"{precision} step {step:2d}: " + " ".join(f"{loss:12.6f}" for loss in losses) + "\n"
            )
    return "".join(lines)


def _prepare(folder: Path, *, steps: int, clips: int, overrides: list[str]) -> RunConfig:
    """Clips, plan, filled latent cache and config.yaml, for every run alike."""
    source = folder / "clips"
    source.mkdir()
    for index in range(clips):
        render_clip("bounce_one", index, out=str(source), seed=0, duration_s=2.0)
    # data.held_out=0 is where it differs from the default config: every clip is trained on
    cfg = load_config(
        None,
        [
            *(f"data.manifest={source}", f"data.cache={folder / 'cache'}", "data.held_out=0.0"),
            *(f"train.steps={steps}", f"train.checkpoint_every={steps}", "train.device=cpu"),
            *overrides,
        ],
    )
    (folder / "config.yaml").write_text(dump_config(cfg))
    index_sources([str(source)], out=str(folder / "manifest.parquet"))
    plan = make_plan(str(folder / "manifest.parquet"), cfg)
    plan.save(folder / "plan.parquet")
    for _ in local_stream(plan, cfg, start_step=0, end_step=steps):
        pass
    return cfg


def _relative(reference: list[float], other: list[float]) -> list[float]:
    return [abs(a - b) / abs(a) for a, b in zip(reference, other, strict=True)]


class GatheredAverage:
    """The reference EMA in fp64, of whole fp32 weights that DeepSpeed itself gathers, beside the teacher."""

    def __init__(self, engine: ZeroEngine) -> None:
        self.engine, self.updates = engine, 0
        self.average = self._student()
        self.start = {name: weight.clone() for name, weight in self.average.items()}
        self.difference_per_step: list[float] = []
        self.movement_per_step: list[float] = []
        self.update_ema, engine.update_ema = engine.update_ema, self.after_update

    def after_update(self, decay: float) -> None:
        self.update_ema(decay)
        ours = ema_decay(self.updates, 0.999)
        self.updates += 1
        for name, weight in self._student().items():
            self.average[name] = ours * self.average[name] + (1 - ours) * weight
        teacher = self._teacher()
        self.difference_per_step.append(_largest_difference(teacher, self.average))
        self.movement_per_step.append(_largest_difference(teacher, self.start))

    def _student(self) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_fp32_param

        found = {}
        for name, parameter in self.engine.engine.module.named_parameters():
            if name.startswith(TEACHER_PREFIX):
                whole = safe_get_full_fp32_param(parameter)
                assert whole is not None, f"{name} has an fp32 master"
                found[name.removeprefix(TEACHER_PREFIX)] = whole.double().clone()
        return found

    def _teacher(self) -> dict[str, Tensor]:
        """What the teacher's forward pass reads."""
        from deepspeed.runtime.zero import GatheredParameters

        module = self.engine.teacher_engine.module
        with GatheredParameters(list(module.parameters())):
            return {name: p.detach().double().clone() for name, p in module.named_parameters()}


def _largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys(), "both are the transformer"
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def _without_sound(batch: LatentBatch) -> LatentBatch:
    audio = batch.audio
    silent = torch.zeros_like(audio.valid_BT)
    return dataclasses.replace(
        batch, audio=ModalityLatents(torch.zeros_like(audio.latents), silent, silent, audio.time_s_T2)
    )


def _reversed(batch: LatentBatch) -> LatentBatch:
    def flip(part: ModalityLatents) -> ModalityLatents:
        return dataclasses.replace(
            part,
            latents=part.latents.flip(0),
            valid_BT=part.valid_BT.flip(0),
            loss_mask_BT=part.loss_mask_BT.flip(0),
        )

    per_clip = ("sample_ids_B", "text_BN", "actions_BFA", "actions_valid_BF")
    return dataclasses.replace(
        batch,
        video=flip(batch.video),
        audio=flip(batch.audio),
        **{name: getattr(batch, name).flip(0) for name in per_clip},
    )


def _stream(
    plan: Plan, cfg: RunConfig, engine: Engine, *, reversed_clips: bool
) -> Iterator[list[LatentBatch]]:
    silent = plan.batch_at(SILENT)[:2]
    steps = local_stream(
        plan, cfg, start_step=0, end_step=cfg.train.steps, rank=engine.rank, world_size=engine.world_size
    )
    for batches in steps:
        step = [_without_sound(b) if (b.epoch, b.batch_id) == silent else b for b in batches]
        yield [_reversed(batch) for batch in step] if reversed_clips else step


def _measure(folder: Path, precision: str, variant: str) -> None:
    """One run of this rank; rank 0 writes losses, gradient norms and what became of the EMA."""
    cfg = load_config(folder / "config.yaml", [f"train.precision={precision}"])
    layout = Layout.from_specs(cfg, codec_spec(cfg.codec.video), codec_spec(cfg.codec.audio))
    watched = None
    if variant == "zero":
        engine = ZeroEngine(cfg, layout, micro_batches=cfg.train.micro_batches // dist.get_world_size())
        watched = GatheredAverage(engine)
    else:
        engine = PlainEngine(cfg, layout)
    rows: list[dict[str, float]] = []
    stream = _stream(Plan.load(folder / "plan.parquet"), cfg, engine, reversed_clips=variant == "reversed")
    hooks = Hooks(commit=lambda step: None, on_row=rows.append)
    train(engine, stream, cfg, layout, start_step=0, hooks=hooks)
    if engine.rank == 0:
        found: dict[str, Any] = {key: [row.get(name, 0.0) for row in rows] for key, name in COLUMNS.items()}
        if watched:
            found["ema"] = {
                "max_difference": max(watched.difference_per_step),
                "max_movement": max(watched.movement_per_step),
                "difference_per_step": watched.difference_per_step,
                "movement_per_step": watched.movement_per_step,
            }
        (folder / f"{precision}-{variant}.json").write_text(json.dumps(found))


def _rank() -> None:
    """Every run of this rank: plain runs in a world of one, ZeRO-3 runs in a larger one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    torch.set_num_threads(1)
    world_size = int(os.environ["WORLD_SIZE"])
    if world_size > 1:
        dist.init_process_group("gloo", rank=int(os.environ["RANK"]), world_size=world_size)
    for precision in PRECISIONS:
        for variant in ("plain", "reversed") if world_size == 1 else ("zero",):
            _measure(folder, precision, variant)
    if world_size > 1:
        dist.destroy_process_group()


COLUMNS = {
    "losses": "loss",
    "losses_video": "loss_video",
    "gradient_norms": "grad_norm",
    "tokens_audio": "tokens_audio",
}

if __name__ == "__main__":
    _rank()
