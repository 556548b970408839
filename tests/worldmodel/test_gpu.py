"""What only a GPU can show: compiled blocks with FlexAttention against eager ones, and noise drawn there."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.worldmodel.synthetic import make_batch, open_gates, stream_of, tiny_config, tiny_layout
from worldmodel.draw import draw
from worldmodel.model.student import SelfFlowStudent
from worldmodel.model.transformer import WorldTransformer
from worldmodel.randomness import SampleRandom
from worldmodel.self_flow import self_flow_losses
from worldmodel.train.engine import PlainEngine
from worldmodel.train.loop import Hooks, train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def student_of(cfg, layout, dtype: torch.dtype, *, compiled: bool) -> SelfFlowStudent:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        student = SelfFlowStudent(WorldTransformer(cfg.model, layout))
    open_gates(student)
    student = student.to("cuda", dtype)
    if compiled:
        student.transformer.compile_blocks()
    return student


def gradients(
    cfg, layout, one, dtype: torch.dtype, *, compiled: bool
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    student = student_of(cfg, layout, dtype, compiled=compiled)
    teacher = student_of(cfg, layout, dtype, compiled=compiled).transformer.requires_grad_(False)
    losses = self_flow_losses(student, teacher, one, cfg.objective, cfg.model.depth)
    loss = losses.objective(one.counts(), cfg.objective)
    loss.backward()
    return loss.detach().float(), {
        n: p.grad.float() for n, p in student.named_parameters() if p.grad is not None
    }


@pytest.mark.parametrize(("head_dim", "window", "sink"), [(64, 7, 1), (128, 2, 0)])
def test_flex_attention_in_compiled_blocks_equals_sdpa_with_gradients(head_dim: int, window: int, sink: int):
    model = {"width": 128, "head_dim": head_dim, "text_tokens": 24, "window_chunks": 8}
    cfg = tiny_config(data={"clip_s": 2.0, "size": [128, 128]}, model=model, objective={"prediction": "v"})
    layout = tiny_layout(
        cfg
    )  # eight chunks of 64 + 4 + 1 tokens: several blocks of 128, none of which divides
    own = cfg.model.model_copy(update={"window_chunks": window, "sink_chunks": sink})
    cfg = cfg.model_copy(update={"model": own})
    batch = make_batch(layout, clips=3)
    text = batch.text_BN.clone()
    text[0, 5:], text[1] = 0, 0  # a short caption and none: keys that nobody sees
    silent = batch.audio.valid_BT.clone()
    silent[2] = False
    audio = replace(batch.audio, valid_BT=silent, loss_mask_BT=silent)
    batch = replace(batch, text_BN=text, audio=audio).to("cuda")
    one = draw(batch, layout, cfg.objective, SampleRandom(0, 0, (0, 1, 2)))
    exact_loss, exact = gradients(cfg, layout, one, torch.float32, compiled=False)
    _, rounded = gradients(cfg, layout, one, torch.bfloat16, compiled=False)
    loss, found = gradients(cfg, layout, one, torch.bfloat16, compiled=True)
    assert float((loss - exact_loss).abs() / exact_loss) < 1e-2
    assert found.keys() == exact.keys()
    for name, gradient in found.items():
        size = exact[name].norm().clamp_min(1e-6)
        error, eager = ((x - exact[name]).norm() / size for x in (gradient, rounded[name]))
        assert float(error) < 1.5 * float(eager) + 1e-2, f"{name}: {float(error)}, eager bf16 {float(eager)}"


def test_buckets_and_missing_sound_share_few_graphs():
    cfg = tiny_config(train={"device": "cuda", "precision": "bf16", "steps": 8})
    layout = tiny_layout(cfg)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    rows: list[dict[str, float]] = []
    hooks = Hooks(commit=lambda step: None, on_row=rows.append)
    train(PlainEngine(cfg, layout), stream_of(layout, buckets=True), cfg, layout, start_step=0, hooks=hooks)
    assert len(rows) == 8
    # Two buckets, with gradients and without.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 4


def test_a_gpu_trains_like_a_cpu_on_the_same_noise(monkeypatch):
    def same(self: SampleRandom, name: str, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
        return self.normal(name, shape).to(device)

    monkeypatch.setattr(SampleRandom, "noise", same)
    losses = {}
    for device in ("cpu", "cuda"):
        cfg = tiny_config(train={"device": device, "precision": "fp32", "steps": 20, "compile": "never"})
        layout = tiny_layout(cfg)
        rows: list[dict[str, float]] = []
        hooks = Hooks(commit=lambda step: None, on_row=rows.append)
        train(PlainEngine(cfg, layout), stream_of(layout), cfg, layout, start_step=0, hooks=hooks)
        losses[device] = [row["loss"] for row in rows]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=1e-2)


def test_noise_of_a_gpu_depends_on_its_sample_only():
    cuda = torch.device("cuda")
    together = SampleRandom(1, 2, (5, 6, 7)).noise("noise", (1000,), cuda)
    assert torch.equal(together[1:2], SampleRandom(1, 2, (6,)).noise("noise", (1000,), cuda))
    assert not torch.equal(together[0], together[1])
    assert float(together.std()) == pytest.approx(1, abs=0.05)
