"""A dry run says what a run would take, and starts nothing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from avtok.load import codec_spec
from ray_jobs.declared_cluster import Cluster, declared_cluster
from ray_jobs.dry_run import describe, dry_run
from ray_jobs.errors import UserError
from ray_jobs.model_cost import build_on_meta, flops_per_step
from ray_jobs.step_memory import LiveBytes, step_memory
from ray_jobs.worker_memory import sizes
from tests.ray_jobs.test_cli_errors import complaint, worldmodel
from tests.worldmodel.synthetic import make_batch
from worldmodel.config import RunConfig
from worldmodel.draw import draw
from worldmodel.layout import Layout
from worldmodel.load_config import load_config
from worldmodel.randomness import SampleRandom
from worldmodel.self_flow import self_flow_losses
from worldmodel.train.engine import PlainEngine, build_student

CONFIGS = Path(__file__).parents[2] / "configs"
PRESETS = sorted(path.stem for path in CONFIGS.glob("av_*.yaml"))
SMALL = {"depth": 3, "width": 96, "head_dim": 24}
NOT_NEEDED = ("ray", "deepspeed")
PROBE = f"""
import sys
sys.argv = ["worldmodel", "train", {str(CONFIGS / "debug_cpu.yaml")!r}, "--dry-run", "--json"]
from ray_jobs.cli import app
app(standalone_mode=False)
import torch
print([name for name in {NOT_NEEDED!r} if name in sys.modules], torch.cuda.is_initialized(), file=sys.stderr)
"""


def layout_of(cfg: RunConfig) -> Layout:
    return Layout.from_specs(cfg, codec_spec(cfg.codec.video), codec_spec(cfg.codec.audio))


def config(**parts: dict[str, Any]) -> RunConfig:
    return RunConfig.model_validate({"model": SMALL, "data": {"batch_clips": 2}, **parts})


@pytest.mark.parametrize("name", PRESETS)
def test_every_size_can_be_looked_at_without_its_hardware(name: str):
    cfg = load_config(CONFIGS / f"{name}.yaml", [])
    facts = dry_run(cfg)
    parts = dict(facts["parameters"])
    assert parts.pop("total") == sum(parts.values())
    assert facts["cluster"]["gpus"] == cfg.train.workers
    assert facts["worker_bytes"]["total"] < 80 << 30  # the GPUs that the headers name
    assert facts["data"] == {"known": "no: data.manifest is not set"}
    assert f"{cfg.train.steps} of" in describe(facts)
    json.dumps(facts)


@pytest.mark.parametrize(
    ("stage", "of_each_worker", "shared"),  # bytes a parameter in bf16, as docs/infrastructure.md has them
    [(0, 24, 0), (1, 8, 16), (2, 4, 20), (3, 0, 24)],
)
def test_each_stage_holds_what_the_page_says(stage: int, of_each_worker: int, shared: int):
    found = {}
    for workers in (1, 4):
        cfg = config(train={"workers": workers, "zero_stage": stage, "micro_batches": 4, "device": "cpu"})
        found[workers] = sizes(cfg, build_on_meta(cfg, layout_of(cfg)))
    numel = found[1].optimizer / 12
    for workers, memory in found.items():
        state = memory.weights + memory.optimizer + memory.gradients + memory.teacher
        assert state / numel == pytest.approx(of_each_worker + shared / workers, rel=0.02)


def test_an_optimizer_in_the_machine_s_memory_leaves_the_gpu_its_weights():
    kept, moved = (
        sizes(cfg, build_on_meta(cfg, layout_of(cfg)), on_gpu=True)
        for cfg in (config(train={"workers": 4, "offload_optimizer": off}) for off in (False, True))
    )
    numel = kept.optimizer / 12
    assert (moved.weights + moved.optimizer + moved.gradients + moved.teacher) / numel == pytest.approx(4)
    assert (moved.host - kept.host) / numel == pytest.approx(24)


def test_a_lora_has_state_and_commits_for_its_adapters_alone():
    changes = {"workers": 2, "device": "cpu", "init": "bounce"}
    whole, adapted = (
        sizes(cfg, build_on_meta(cfg, layout_of(cfg)))
        for cfg in (config(train=changes | {"lora": lora}) for lora in (None, {"rank": 4}))
    )
    assert adapted.weights > whole.weights  # the base, and what is added
    for kind in ("optimizer", "gradients", "teacher", "checkpoint"):
        assert getattr(adapted, kind) < 0.1 * getattr(whole, kind), kind


def test_a_model_on_the_meta_device_leaves_what_libraries_keep_on_the_cpu():
    code = """
from tests.ray_jobs.test_dry_run import config, layout_of
from ray_jobs.model_cost import build_on_meta
cfg = config(train={"init": "bounce", "lora": {"rank": 4}})
build_on_meta(cfg, layout_of(cfg))
from torchaudio.compliance.kaldi import EPSILON
print(EPSILON.device)
"""
    command, root = [sys.executable, "-c", code], CONFIGS.parent
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert done.stdout.splitlines()[-1:] == ["cpu"], done.stderr


def test_without_peft_a_lora_s_dry_run_names_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ray_jobs.models.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"train.lora needs peft"):
        dry_run(config(train={"init": "bounce", "lora": {"rank": 4}}))


def test_a_dry_run_imports_no_ray_and_touches_no_gpu():
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "[] False", done.stderr
    assert json.loads(done.stdout)["name"] == "debug_cpu"


def test_weights_and_state_are_those_of_a_real_engine():
    cfg = config(train={"workers": 1, "device": "cpu", "gather": "step"})
    layout = layout_of(cfg)
    engine = PlainEngine(cfg, layout, device=torch.device("cpu"))
    found = sizes(cfg, build_on_meta(cfg, layout))

    def held(tensors) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    assert found.weights == held(engine.student.parameters())
    heads = sum(p.numel() for p in engine.student.head.parameters())  # in the shards of the average too
    assert found.teacher == held([*engine.teacher.parameters(), *engine.ema.values()]) + heads * (2 + 4)
    assert found.gradients == held(engine.gradient.values())
    stored = [part for shard in engine.shards().values() for part in shard.parts.values()]
    assert found.checkpoint == held(stored)
    assert found.optimizer == found.checkpoint - held(engine.ema.values())


def test_zero3_shares_state_and_gathers_by_block_or_by_step():
    whole, by_step, by_block = (
        sizes(cfg, build_on_meta(cfg, layout_of(cfg)))
        for cfg in (
            config(train={"workers": workers, "gather": gather, "device": "cpu"})
            for workers, gather in ((1, "step"), (4, "step"), (4, "block"))
        )
    )
    assert whole.optimizer / by_step.optimizer == pytest.approx(4, rel=0.01)
    assert by_step.whole == pytest.approx(8 * whole.weights / 2, rel=0.05)  # 2 + 4 + 2 bytes a parameter
    assert by_step.gathered == by_block.whole == 0 < by_block.gathered < by_step.whole
    assert whole.activations == by_step.activations  # a micro-batch is as large on any number of workers


@pytest.mark.parametrize(("precision", "recompute"), [("bf16", False), ("fp32", False), ("fp32", True)])
def test_activations_are_within_a_tenth_of_what_a_real_step_keeps(precision: str, recompute: bool):
    cfg = config(train={"device": "cpu", "precision": precision, "recompute": recompute})
    layout = layout_of(cfg)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    student = build_student(cfg, layout).to(dtype)
    student.transformer.recompute = recompute
    teacher = build_student(cfg, layout).transformer.to(dtype).requires_grad_(False)
    for parameter in student.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    one = draw(make_batch(layout, clips=2), layout, cfg.objective, SampleRandom(0, 0, (0, 1)))
    with LiveBytes() as live:
        losses = self_flow_losses(student, teacher, one, cfg.objective, cfg.model.depth)
        kept = live.now
        if precision == "fp32":  # many processors take a minute for it in bf16
            losses.objective(one.counts(), cfg.objective).backward()
    found = step_memory(cfg, layout, build_on_meta(cfg, layout), 2, on_gpu=False)
    assert found.kept == pytest.approx(kept, rel=0.1)
    assert found.kept + found.passing == pytest.approx(live.peak, rel=0.1)


@pytest.mark.parametrize("recompute", [False, True])
def test_on_a_gpu_attention_keeps_no_weights_not_even_when_it_is_computed_again(recompute: bool):
    many_heads = {"depth": 2, "width": 96, "head_dim": 8, "text_tokens": 512}
    cfg = config(model=many_heads, train={"device": "cuda", "recompute": recompute})
    layout = layout_of(cfg)
    found = step_memory(cfg, layout, build_on_meta(cfg, layout), 2, on_gpu=True)
    weights = 2 * 12 * layout.length**2 * 2  # of one block: clips, heads, tokens squared, bytes
    assert found.passing + found.kept / 2 < weights
    on_cpu = step_memory(cfg, layout, build_on_meta(cfg, layout), 2, on_gpu=False)
    assert on_cpu.passing + on_cpu.kept > weights


def test_flops_are_those_of_the_paths_that_tokens_take():
    wide = {"depth": 3, "width": 384, "head_dim": 48}
    cfg = config(model=wide, objective={"rep": "none"}, train={"micro_batches": 3})
    layout = layout_of(cfg)
    width, depth = cfg.model.width, cfg.model.depth
    per_block = 8 * width**2 * layout.length + 4 * layout.length**2 * width
    per_block += 12 * width * layout.num_levels * layout.length  # picking each token's noise level
    per_block += 12 * width**2 * layout.num_levels
    hidden = 16 * width**2  # both products of a feed-forward of four widths
    tokens = layout.num_chunks * (layout.video_tokens + layout.audio_tokens)
    forward = cfg.data.batch_clips * depth * (per_block + hidden * tokens)
    counted = flops_per_step(cfg, layout, build_on_meta(cfg, layout))
    assert counted == pytest.approx(3 * 3 * forward, rel=0.1)  # backward is two forwards
    with_teacher = config(model=wide, train={"micro_batches": 3})
    assert flops_per_step(with_teacher, layout, build_on_meta(with_teacher, layout)) > 1.15 * counted


@pytest.mark.parametrize(
    ("switches", "low", "high"),
    [
        ({}, 1.15, 1.28),
        ({"dual": False, "teacher_t": "offset"}, 1.15, 1.28),
        ({"rep": "layersync", "dual": False}, 1, 1),
        ({"rep": "velocity_heads"}, 1, 1.06),
    ],
)
def test_what_an_objective_costs_over_plain_flow_matching_is_told(switches, low, high):
    facts = dry_run(config(model={"depth": 10, "width": 384, "head_dim": 48}, objective=switches))
    assert low <= facts["train"]["over_flow_matching"] <= high
    assert f"{facts['train']['over_flow_matching']:.2f} of plain flow matching's" in describe(facts)


def test_memory_of_a_run_that_follows_frozen_encoders_holds_their_features():
    targets = [
        {"name": "dino", "encoder": "/mnt/FOLDER", "width": 768},
        {"name": "mert", "encoder": "/mnt/FOLDER", "width": 64, "modality": "audio"},
    ]
    plain, repa = (
        dry_run(config(objective={"rep": rep, "dual": False}, data={"batch_clips": 2, "targets": targets}))
        for rep in ("none", "repa")
    )
    layout = layout_of(config())
    features = 2 * layout.num_chunks * layout.video_tokens * 768 * 2  # clips, tokens, width, bytes
    more = repa["worker_bytes"]["batches"] - plain["worker_bytes"]["batches"]
    assert features <= more < 2.2 * features  # as they come, and drawn
    assert repa["train"]["over_flow_matching"] > 1


def test_what_a_run_begins_from_is_looked_at():
    shipped = load_config(CONFIGS / "shipped" / "bounce.yaml", ["train.init=bounce"])
    facts = dry_run(shipped)
    assert "begins from" in facts["begins_from"][0]
    assert describe(facts).startswith("begins from")
    elsewhere = load_config(CONFIGS / "shipped" / "bounce.yaml", ["train.init=/mnt/models/mine"])
    assert "not on this machine" in describe(dry_run(elsewhere))


@pytest.mark.parametrize(
    ("config", "settings", "says"),
    [
        ("shipped/bounce.yaml", ["train.init=nowhere"], "nowhere: not an exported model"),
        ("av_25m.yaml", ["train.init=bounce"], "begin from a model of the same width"),
        ("av_25m.yaml", ["train.init=bounce", "train.lora.rank=8"], "width 192 against 320"),
        (
            "shipped/bounce.yaml",
            ["train.init=bounce", "train.lora.targets=[foo]"],
            "train.lora.targets: no linear layer is named foo; there are ",
        ),
    ],
)
def test_what_cannot_begin_as_asked_is_refused_in_words(config: str, settings: list[str], says: str):
    with pytest.raises(UserError, match=re.escape(says)):
        dry_run(load_config(CONFIGS / config, settings))


@pytest.mark.parametrize("rep", ["repa", "none"])  # decode actors run them, followed or not
def test_encoders_that_only_the_cluster_has_are_told_and_others_are_looked_at(rep: str):
    def beside(encoder: str) -> RunConfig:
        target = {"name": "dino", "encoder": encoder, "width": 768}
        return config(objective={"rep": rep, "dual": False}, data={"targets": [target]})

    said = (
        "data.targets: dino: /mnt/dino is not on this machine: whether it is an encoder of width 768 is not"
    )
    assert said in describe(dry_run(beside("/mnt/dino")))
    with pytest.raises(UserError, match=r"dino: nowhere has no config\.json"):
        dry_run(beside("nowhere"))


def test_the_largest_bucket_decides_what_a_worker_needs():
    large, small = {"clip_s": 2.0, "size": [256, 256]}, {"clip_s": 1.0, "size": [64, 64]}
    bucketed, plain = (
        dry_run(config(data={"batch_clips": 2, **data}))
        for data in ({"buckets": [large, small]}, {"size": [256, 256]})
    )
    for topic in ("worker_bytes", "seconds", "tokens"):
        assert bucketed[topic] == plain[topic], topic
    assert bucketed["train"]["flops_per_step"] == plain["train"]["flops_per_step"]
    assert "\nreckoned with its largest micro-batch: 2 clips of 2.0 s at 256x256\n" in "\n" + describe(
        bucketed
    )
    assert "reckoned" not in describe(plain)
    with pytest.raises(UserError, match=r"for 2 clips of 2\.0 s at 256x256"):
        dry_run(config(data={"batch_clips": 2, "buckets": [large]}), Cluster(cpu_memory_gb=1.5))


def test_a_bucket_larger_than_the_budget_of_tokens_still_holds_one_clip():
    budget = {"batch_tokens": 400, "buckets": [{"clip_s": 2.0, "size": [256, 256]}]}
    found = dry_run(config(data=budget))
    alone = dry_run(config(data={"batch_clips": 1, "size": [256, 256]}))
    assert found["worker_bytes"] == alone["worker_bytes"]
    assert "micro-batch: 1 clip of 2.0 s at 256x256" in describe(found)
    with pytest.raises(UserError, match="does not divide the latent grid"):
        dry_run(config(data={"buckets": [{"clip_s": 2.0, "size": [72, 72]}]}))


def test_what_does_not_divide_is_refused_in_words(tmp_path: Path):
    config = CONFIGS / "debug_cpu.yaml"
    (line,) = complaint("train", config, "--dry-run", "--set", "model.patch=[3, 2]", cwd=tmp_path)
    assert "model.patch=[3, 2] does not divide the latent grid" in line
    (line,) = complaint("train", config, "--dry-run", "--set", "model.head_dim=40", cwd=tmp_path)
    assert "is not a multiple of model.head_dim=40" in line
    done = worldmodel("train", config, "--dry-run", cwd=tmp_path)
    assert (done.returncode, "7.45 M" in done.stdout, list(tmp_path.iterdir())) == (0, True, [])


def test_a_prefix_longer_than_the_clips_is_told():
    said = (
        "nothing will be continued after training: held-out clips are 1 s long at most, and rollout.prefix_s="
    )
    for prefix_s, warned in ((1.0, []), (1.1, []), (1.5, [said + "1.5"])):
        cfg = config(data={"clip_s": 1.0}, rollout={"prefix_s": prefix_s})
        assert dry_run(cfg)["warnings"] == warned, prefix_s


def test_workers_that_share_clips_count_as_one():
    train = {"workers": 4, "micro_batches": 3, "device": "cpu"}
    for shared, found in ((1, (1, 1)), (2, (2, 1)), (4, (3, 0))):
        cfg = config(train=train | {"sequence_parallel": shared}, model=SMALL | {"width": 96})
        told = dry_run(cfg)["train"]
        assert (told["micro_batches_per_worker"], told["idle_slots"]) == found, shared


def test_gpus_that_a_run_leaves_idle_and_that_cannot_do_what_it_asks_are_told():
    cluster = declared_cluster("h100", "bf16", 2)
    facts = dry_run(config(train={"device": "cpu"}), cluster)
    assert facts["seconds"] is None
    assert "warning: train.device=cpu leaves the GPUs of --cluster idle" in describe(facts)
    assert dry_run(config(), cluster)["warnings"] == []
    assert dry_run(config(), cluster)["seconds"]
    in_8_bits = config(train={"fp8": True, "gather": "step"})
    dry_run(in_8_bits, cluster)
    with pytest.raises(UserError, match=r"train\.fp8=true needs a GPU with FP8 units, and gpu=a100 has none"):
        dry_run(in_8_bits, declared_cluster("a100", "bf16", 2))


def test_phases_that_never_come_are_told_by_a_dry_run():
    phases = [{"name": "long", "steps": 10}, {"name": "last"}]
    facts = dry_run(config(data={"phases": phases, "batch_clips": 2}, train={"steps": 10}))
    assert "warning: data.phases: train.steps=10 ends before last (at step 10)" in describe(facts)
