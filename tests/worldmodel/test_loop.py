"""The training loop with the plain engine: it learns, stops, resumes, and never stores what is broken."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.worldmodel.synthetic import make_batch, stream_of, tiny_config, tiny_layout
from worldmodel.batch import LatentBatch
from worldmodel.config import RunConfig
from worldmodel.train.checkpoint import load_checkpoint, write_checkpoint
from worldmodel.train.engine import PlainEngine
from worldmodel.train.loop import Hooks, Outcome, TrainingDiverged, evaluate, train

GOLDEN = Path(__file__).parent / "golden" / "losses_tiny.json"


class Run:
    """One call of the loop and everything that it did."""

    def __init__(self, cfg: RunConfig, *, stop_at_call: int = -1, evaluation: Callable | None = None) -> None:
        self.cfg, self.layout = cfg, tiny_layout(cfg)
        self.engine = PlainEngine(cfg, self.layout)
        self.rows: list[dict[str, float]] = []
        self.commits: list[int] = []
        self.consumed: list[int] = []
        self.calls, self.stop_at_call = 0, stop_at_call
        self.evaluation = evaluation

    def go(
        self, stream: Iterator[list[LatentBatch]] | None = None, start_step: int = 0, **options: Any
    ) -> Outcome:
        hooks = Hooks(
            commit=self.commits.append,
            consumed=lambda batch: self.consumed.append(batch.batch_id),
            on_row=self.rows.append,
            should_stop=self._should_stop,
            evaluation=self.evaluation,
        )
        stream = stream_of(self.layout, start=start_step) if stream is None else stream
        return train(
            self.engine, stream, self.cfg, self.layout, start_step=start_step, hooks=hooks, **options
        )

    def _should_stop(self) -> bool:
        self.calls += 1
        return self.calls - 1 == self.stop_at_call

    def losses(self) -> list[float]:
        return [row["loss"] for row in self.rows if "loss" in row]


def test_the_loss_falls_on_something_that_can_be_learned():
    run = Run(tiny_config(train={"steps": 40}))
    assert run.go() == Outcome("finished", 40)
    flow = [row["loss_video"] + row["loss_audio"] for row in run.rows]
    assert sum(flow[-10:]) < 0.5 * sum(flow[:10])
    cosine = [row["cosine_video"] + row["cosine_audio"] for row in run.rows]
    assert sum(cosine[-10:]) > sum(cosine[:10])
    assert run.commits == [40]


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.25, 2.0), (0.0, 1.0)])
def test_the_loss_of_a_row_is_what_is_minimised(weights):
    video, audio = weights
    run = Run(tiny_config(objective={"video_weight": video, "audio_weight": audio}, train={"steps": 2}))
    run.go()
    for row in run.rows:
        parts = {m: row[f"loss_{m}"] + 0.8 * row[f"align_{m}"] for m in ("video", "audio")}
        assert row["loss"] == pytest.approx(video * parts["video"] + audio * parts["audio"], rel=1e-12)


def test_evaluation_falls_too_and_comes_when_asked():
    cfg = tiny_config(train={"steps": 40, "evaluate_every": 20})
    run = Run(cfg, evaluation=lambda: [make_batch(tiny_layout(cfg), number=1000)])
    run.go()
    evaluated = [row for row in run.rows if "eval_video" in row]
    assert [row["step"] for row in evaluated] == [20, 40]
    first, last = (row["eval_video"] + row["eval_audio"] for row in evaluated)
    assert last < first


def test_commits_come_every_so_many_steps_and_at_the_end():
    run = Run(tiny_config(train={"steps": 8, "checkpoint_every": 3}))
    run.go()
    assert run.commits == [3, 6, 8]
    assert [row["step"] for row in run.rows] == list(range(8))
    assert run.consumed == list(range(16))


def test_a_stop_request_commits_what_was_trained_and_ends():
    run = Run(tiny_config(), stop_at_call=3)
    assert run.go() == Outcome("stopped", 3)
    assert run.commits == [3]
    assert run.consumed == list(range(6))  # the batches of the step that was not trained are not consumed
    assert len(run.rows) == 3


def test_a_stop_right_after_a_commit_does_not_store_the_same_step_again():
    run = Run(tiny_config(train={"checkpoint_every": 3}), stop_at_call=3)
    assert run.go() == Outcome("stopped", 3)
    assert run.commits == [3]
    resumed = Run(tiny_config(train={"checkpoint_every": 3}), stop_at_call=0)
    assert resumed.go(start_step=3) == Outcome("stopped", 3)
    assert resumed.commits == []


def with_bad_clips(layout, share: float) -> Iterator[list[LatentBatch]]:
    for batches in stream_of(layout):
        yield [
            replace(b, reasons=dict.fromkeys(range(round(share * b.num_clips)), "cut short")) for b in batches
        ]


def test_too_many_bad_clips_end_the_loop_after_a_commit():
    run = Run(tiny_config())
    outcome = run.go(with_bad_clips(run.layout, 0.5), enough_clips=16)
    assert (outcome.status, outcome.step) == ("quarantine", 1)  # 8 clips a step: judged when 16 were seen
    assert outcome.reason == "8 of 16 clips could not be used, more than data.max_quarantine_rate=0.2"
    assert run.commits == [1]
    assert run.consumed == [0, 1]


def test_a_few_bad_clips_do_not():
    cfg = tiny_config(data={"max_quarantine_rate": 0.5})
    run = Run(cfg)
    assert run.go(with_bad_clips(run.layout, 0.5), enough_clips=16).status == "finished"


def with_nan(layout, step_of_nan: int) -> Iterator[list[LatentBatch]]:
    for step, batches in enumerate(stream_of(layout)):
        if step == step_of_nan:
            batches[0].video.latents[0] = torch.nan
        yield batches


@pytest.mark.parametrize("checkpoint_every", [1, 2, 100])
@pytest.mark.parametrize("step_of_nan", [3, 7])
def test_a_loss_that_is_not_finite_ends_the_run_and_is_never_committed(checkpoint_every, step_of_nan):
    run = Run(tiny_config(train={"checkpoint_every": checkpoint_every}))
    with pytest.raises(
        TrainingDiverged, match=rf"step {step_of_nan}: the loss of .* is not finite; lower optim.lr"
    ):
        run.go(with_nan(run.layout, step_of_nan))
    assert run.commits == [n for n in range(1, step_of_nan + 1) if n % checkpoint_every == 0]
    assert len(run.rows) == step_of_nan + 1  # the row shows it


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gradient_that_overflows_behind_a_finite_loss_ends_the_run_and_is_never_committed(precision):
    run, calls = Run(tiny_config(train={"checkpoint_every": 1, "precision": precision})), count()
    weight = next(iter(run.engine.student.parameters()))
    weight.register_hook(lambda gradient: gradient * (float("inf") if next(calls) >= 2 * 3 else 1))
    said = r"step 3: the gradient is not finite; lower optim.lr \(now .*\) or optim.clip_norm"
    with pytest.raises(TrainingDiverged, match=said):
        run.go()  # two micro-batches a step
    assert run.commits == [1, 2, 3]
    assert torch.isfinite(torch.tensor(run.losses())).all()


def test_nan_in_an_absent_clip_harms_nothing():
    run = Run(tiny_config(train={"steps": 2}))

    def stream() -> Iterator[list[LatentBatch]]:
        for batches in stream_of(run.layout):
            batches[0].audio.valid_BT[0] = batches[0].audio.loss_mask_BT[0] = False
            yield batches

    run.go(stream())
    assert all(torch.isfinite(torch.tensor(run.losses())))


def test_a_modality_that_nobody_has_leaves_the_row_and_the_other_one_learns():
    run = Run(tiny_config(train={"steps": 3}))
    silent = ([make_batch(run.layout, number=n, has_audio=False)] for n in range(3))
    run.go(silent)
    assert all("loss_audio" not in row and row["loss_video"] > 0 for row in run.rows)


def state_of(engine: PlainEngine) -> dict[str, torch.Tensor]:
    return {f"{kind}/{n}": p.clone() for n, s in engine.shards().items() for kind, p in s.parts.items()}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, precision):
    cfg = tiny_config(train={"steps": 6, "precision": precision})
    whole = Run(cfg)
    whole.go()
    first = Run(cfg, stop_at_call=3)
    first.go()
    write_checkpoint(tmp_path, first.engine, 3, {})
    second = Run(cfg)
    step = load_checkpoint(tmp_path, second.engine)
    second.go(start_step=step)
    assert first.losses() + second.losses() == whole.losses()
    assert first.consumed + second.consumed == whole.consumed
    ours, theirs = state_of(second.engine), state_of(whole.engine)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_first_losses_are_the_golden_ones():
    # After a deliberate change of model or objective, write them anew and say why in the commit:
    # python -m tests.worldmodel.test_loop
    golden = json.loads(GOLDEN.read_text())
    assert golden_losses() == pytest.approx(golden, rel=2e-3)


def golden_losses() -> list[float]:
    run = Run(tiny_config(train={"steps": 20}))
    run.go()
    return run.losses()


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps([round(loss, 6) for loss in golden_losses()], indent=1) + "\n")


@pytest.mark.parametrize("rep", ["none", "ema"])
def test_averaged_weights_run_in_training_only_where_there_is_a_teacher(rep: str):
    cfg = tiny_config(train={"steps": 3, "evaluate_every": 100}, objective={"rep": rep})
    run = Run(cfg)
    name = "blocks.0.attention.qkv.weight"
    before = dict(run.engine.teacher.named_parameters())[name].detach().clone()
    run.go()
    running, average = (
        dict(run.engine.teacher.named_parameters())[name],
        run.engine.ema[f"transformer.{name}"],
    )
    assert torch.equal(running, before) == (rep == "none")
    assert not torch.equal(average, before)
    evaluate(run.engine, [make_batch(run.layout)], cfg, run.layout)
    assert torch.equal(running, average)


def test_what_is_computed_again_for_backward_trains_the_same():
    kept, again = (Run(tiny_config(train={"recompute": x})) for x in (False, True))
    for run in (kept, again):
        run.go()
    assert again.losses() == pytest.approx(kept.losses(), rel=1e-6)
    assert again.engine.student.transformer.recompute
