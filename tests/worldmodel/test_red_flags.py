"""Warnings come for what is wrong, once, and not for what is right."""

from __future__ import annotations

import math

import torch

from worldmodel.gpus import peak_flops
from worldmodel.train.metrics import Signals, step_row
from worldmodel.train.red_flags import RedFlags


def warnings_of(steps: int = 1000, **curves) -> list[str]:
    flags, found = RedFlags(), []
    for step in range(steps):
        found += flags.see(
            {"step": step, "loss": 1.0, **{name: curve(step) for name, curve in curves.items()}}
        )
    return found


def falling(step: int) -> float:
    return 0.2 + math.exp(-step / 100)


def test_a_healthy_run_is_left_in_peace():
    slowly = {"cosine_video": lambda s: 0.9 * (1 - math.exp(-s / 500)), "cosine_audio": lambda s: 0.5}
    assert warnings_of(loss_video=falling, loss_audio=falling, **slowly) == []


def test_a_high_and_flat_cosine_is_told_once_and_only_early():
    high = {"cosine_video": lambda s: 0.96}
    (said,) = warnings_of(loss_video=falling, **high)
    assert "the cosine of video to its teacher is 0.960 and flat" in said
    still_rising = {"cosine_video": lambda s: min(0.999, 0.9 + s / 10_000)}
    assert warnings_of(loss_video=falling, **still_rising) == []
    late = {"cosine_video": lambda s: 0.5 if s < 2100 else 0.97}
    assert warnings_of(3000, loss_video=falling, **late) == []


def test_sound_that_is_not_learned_is_told():
    (said,) = warnings_of(loss_video=falling, loss_audio=lambda s: 0.7)
    assert "the loss of audio is where it began, at 0.700" in said
    assert "objective.audio_weight" in said


def test_a_run_that_goes_on_and_a_model_that_had_learned_are_where_they_began_in_peace():
    later, warm = RedFlags(), RedFlags(begins_anew=False)
    rows = [{"step": step, "loss": 1.0, "loss_video": 0.2, "loss_audio": 0.7} for step in range(1000)]
    assert [said for row in rows for said in later.see(row | {"step": row["step"] + 500})] == []
    assert [said for row in rows for said in warm.see(row)] == []


def test_rows_of_an_evaluation_and_missing_modalities_are_passed_over():
    assert RedFlags().see({"step": 5, "eval_video": 0.3}) == []
    assert warnings_of(loss_video=falling) == []


def test_the_peak_of_a_gpu_is_known_by_the_name_that_cuda_gives_it():
    assert peak_flops("NVIDIA H100 80GB HBM3", "bf16") == 989e12
    assert peak_flops("NVIDIA A100-SXM4-40GB", "bf16") == 312e12
    assert peak_flops("NVIDIA GeForce RTX 4090", "fp32") == 82.6e12
    assert peak_flops("NVIDIA L4", "bf16") == 121e12  # not the L40S
    assert peak_flops("NVIDIA L40S", "bf16") == 362e12
    assert peak_flops("Somebody's Accelerator", "bf16") is None


def test_a_row_says_what_share_of_its_devices_peak_a_step_used():
    signals = Signals(flops=6e12, step_s=4.0, tokens=10.0)  # of two ranks, 2 s each
    row = step_row(0, signals, torch.zeros(2), world_size=2, peak=10e12)
    assert row["flops_per_s"] == 3e12
    assert row["mfu"] == 0.15
    assert "mfu" not in step_row(0, signals, torch.zeros(2), world_size=2)
