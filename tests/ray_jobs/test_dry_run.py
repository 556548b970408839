"""A dry run says what a run would take, and starts nothing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from avtok.load import codec_spec
from avtok.mux import write_clip
from ray_jobs.declared_cluster import Cluster, declared_cluster
from ray_jobs.dry_run import describe, dry_run
from ray_jobs.errors import UserError
from ray_jobs.model_cost import build_on_meta, flops_per_step
from ray_jobs.plan import make_plan
from ray_jobs.source_size import describe_data
from ray_jobs.step_memory import LiveBytes, step_memory
from ray_jobs.worker_memory import sizes
from tests.ray_jobs.test_cli_errors import complaint, worldmodel
from tests.ray_jobs.test_plan import write_manifest
from tests.worldmodel.synthetic import make_batch
from worldmodel.config import RunConfig
from worldmodel.draw import draw
from worldmodel.layout import Layout
from worldmodel.load_config import load_config
from worldmodel.randomness import SampleRandom
from worldmodel.self_flow import self_flow_losses
from worldmodel.train.engine import PlainEngine, build_student
from worldmodel.worlds.bounce import BounceSettings, simulate

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


BUCKETS = [{"clip_s": 0.5, "size": [64, 64]}, {"clip_s": 1.0, "size": [32, 64]}]


@pytest.mark.parametrize("buckets", [[], BUCKETS], ids=["one bucket", "buckets"])
def test_clips_and_passes_are_counted_as_the_plan_cuts_them(
    manifest: Path, clip_folder: Path, cfg: RunConfig, buckets: list[Any]
):
    values = cfg.model_dump()
    values["data"] |= {"buckets": buckets, "batch_tokens": 2000 if buckets else None}
    values["data"] |= {"batch_clips": 1} if buckets else {}
    cfg = RunConfig.model_validate(values)
    plan = make_plan(str(manifest), cfg)
    found = describe_data(cfg).facts
    assert (found["known"], found["clips"]) == ("indexed", plan.num_samples)
    assert found["batches_per_epoch"] == plan.num_batches_per_epoch
    folder = cfg.model_copy(update={"data": cfg.data.model_copy(update={"manifest": str(clip_folder)})})
    assert (
        abs(describe_data(folder).facts["clips"] - plan.num_samples) <= 1
    )  # the silent one is only found later
    with pytest.raises(UserError, match="no such file or folder"):
        dry_run(cfg.model_copy(update={"data": cfg.data.model_copy(update={"manifest": "nowhere"})}))


@pytest.mark.parametrize("manifest", ["/mnt/clips", "/mnt/clips/{00..31}.tar", "/mnt/lerobot?camera=top"])
def test_clips_that_only_the_cluster_has_are_not_known(manifest: str):
    facts = dry_run(config(data={"manifest": manifest}))
    told = f"\ndata: {manifest} is not on this machine: its clips and epochs are not known\n"
    assert told in describe(facts)
    mixture = [{"name": "some", "manifest": manifest, "weight": 1}]
    assert describe_data(config(data={"mixture": mixture})).facts == facts["data"]


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


def test_a_mixture_is_held_out_of_as_the_plan_does(manifest: Path, clip_folder: Path, cfg: RunConfig):
    """A part of all sources together, not of each."""
    values = cfg.model_dump()
    names = [chr(ord("a") + number) for number in range(4)]
    mixture = [{"name": name, "manifest": str(manifest), "weight": 1} for name in names]
    values["data"] |= {"manifest": "", "mixture": mixture, "held_out": 0.1, "batch_clips": 1}
    cfg = RunConfig.model_validate(values)
    plan, found = make_plan(dict.fromkeys(names, str(manifest)), cfg), describe_data(cfg).facts
    assert found["batches_per_epoch"] == plan.num_batches_per_epoch
    assert (found["known"], found["clips"]) == ("4 sources", plan.num_samples)


def test_clips_that_are_elsewhere_are_counted_by_the_spans_of_their_list(tmp_path: Path, cfg: RunConfig):
    rows = [{"uri": f"/mnt/nowhere/{n}.mp4", "start_s": 0.0, "end_s": 3.0} for n in range(10)]
    (tmp_path / "clips.json").write_text(json.dumps(rows))
    data = cfg.data.model_copy(update={"manifest": str(tmp_path / "clips.json")})
    found = describe_data(cfg.model_copy(update={"data": data})).facts
    assert found["clips"] == 10 * round(3 / cfg.data.clip_s)
    assert found["hours"] == pytest.approx(30 / 3600)


def test_a_source_of_sound_alone_is_reckoned_without_pictures_and_refused_where_it_teaches_nothing(
    tmp_path: Path,
):
    def facts_of(row: dict[str, Any], *, workers: int = 1, **objective: float) -> dict[str, Any]:
        rows = [
            {"uri": f"file {n}", "group": str(n), "end_s": 2.0, "duration_s": 2.0} | row for n in range(9)
        ]
        manifest = write_manifest(tmp_path / "m.parquet", rows)
        train = {"device": "cpu", "workers": workers, "micro_batches": 1}
        return dry_run(
            config(
                data={"manifest": manifest, "batch_clips": 2, "size": (128, 128)},
                train=train,
                objective=objective,
            )
        )

    films, sounds = facts_of({}), facts_of({"has_video": False})
    assert sounds["tokens"]["parts"]["video"] < films["tokens"]["parts"]["video"]
    assert sounds["worker_bytes"]["total"] < films["worker_bytes"]["total"]
    assert "reckoned with its largest micro-batch: 2 clips of 2.0 s of sound alone" in describe(sounds)
    idle = facts_of({"has_video": False}, workers=2)  # an empty micro-batch has the first bucket's shape
    assert idle["worker_bytes"]["activations"] == films["worker_bytes"]["activations"]
    assert idle["tokens"] == sounds["tokens"]
    assert idle["train"]["flops_per_step"] == sounds["train"]["flops_per_step"]
    with pytest.raises(UserError, match="nothing to learn: all clips for training hold sound, and"):
        facts_of({"has_video": False}, picture_alone=1.0)


def write_sources(folder: Path, sounds: int, films: int = 0, silent: int = 0) -> Path:
    """Files of one second: films first, then silent ones, then sound alone."""
    folder.mkdir()
    episode = simulate(BounceSettings(), seed=0, duration_s=1.0)
    video, audio = episode.video_THWC, episode.audio_N
    contents = [(video, audio)] * films + [(video, None)] * silent + [(None, audio)] * sounds
    for n, (seen, heard) in enumerate(contents):
        write_clip(
            folder / f"{n:03}.{'m4a' if seen is None else 'mp4'}", seen, heard, fps=16, sample_rate=16000
        )
    return folder


def test_the_sound_of_another_file_is_looked_at(tmp_path: Path):
    folder = write_sources(tmp_path / "files", sounds=4, silent=4)
    lines = [f"{folder}/{n:03}.mp4,{folder}/{n + 4:03}.m4a\n" for n in range(4)]
    (tmp_path / "list.csv").write_text("video,audio\n" + "".join(lines))
    data, alone = {"manifest": str(tmp_path / "list.csv"), "clip_s": 1.0}, {"sound_alone": 1.0}
    assert dry_run(config(data=data, objective=alone))["warnings"] == []
    (folder / "004.m4a").unlink()  # a run leaves that film out
    assert dry_run(config(data=data, objective=alone))["data"]["clips"] == 3
    silent = write_sources(tmp_path / "silent", sounds=0, silent=2)
    with pytest.raises(UserError, match="nothing to learn"):
        dry_run(config(data=data | {"manifest": str(silent)}, objective=alone))


def test_what_was_not_looked_at_may_be_films(tmp_path: Path):
    """Every third of 129 files is opened."""
    folder = write_sources(tmp_path / "files", sounds=128)
    write_sources(tmp_path / "film", sounds=0, films=1)
    (tmp_path / "film" / "000.mp4").rename(folder / "001.mp4")
    found = dry_run(config(data={"manifest": str(folder), "clip_s": 1.0}))
    assert found["data"]["known"] == "from 43 of 129 files"
    assert (
        found["tokens"]["parts"]["video"] == dry_run(config(data={"clip_s": 1.0}))["tokens"]["parts"]["video"]
    )


def test_a_manifest_of_no_clips_is_refused(tmp_path: Path):
    manifest = write_manifest(tmp_path / "m.parquet", [])
    with pytest.raises(UserError, match=r"m\.parquet: holds no clips"):
        dry_run(config(data={"manifest": manifest}))


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


def test_clips_in_a_tar_are_counted(tmp_path: Path, clip_folder: Path, cfg: RunConfig):
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        for name in ("bounce_0.mp4", "bounce_1.mp4"):
            shard.add(clip_folder / name, name)
    data = cfg.data.model_copy(update={"manifest": str(tmp_path / "shard.tar")})
    assert describe_data(cfg.model_copy(update={"data": data})).facts["clips"] == 2 * round(
        2 / cfg.data.clip_s
    )
