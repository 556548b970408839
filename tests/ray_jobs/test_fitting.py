"""A declared cluster: what cannot fit is refused, and what the refusal names does fit."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from avtok.load import codec_spec
from ray_jobs.buckets import Kinds, buckets_of, largest_buckets, shaped_layout
from ray_jobs.declared_cluster import GPUS, Cluster, declared_cluster
from ray_jobs.dry_run import describe, dry_run
from ray_jobs.errors import UserError
from ray_jobs.fitting import CPU_MARGIN, GPU_MARGIN, SIZES, memory_of, needs, refuse_what_cannot_fit
from ray_jobs.model_cost import build_on_meta
from ray_jobs.state_memory import Counts
from ray_jobs.step_time import step_time
from tests.ray_jobs.test_cli_errors import complaint, worldmodel
from worldmodel.config import RunConfig
from worldmodel.layout import Layout
from worldmodel.load_config import load_config

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = {"model.depth": 2, "model.width": 512, "model.head_dim": 64, "train.device": "cpu"}


def config(**settings: object) -> RunConfig:
    """Of --set, with __ for dots."""
    given = SMALL | {name.replace("__", "."): value for name, value in settings.items()}
    return load_config(None, [f"{name}={value}" for name, value in given.items()])


def needed_gb(cfg: RunConfig) -> float:
    return CPU_MARGIN.over(memory_of(cfg, on_gpu=False).peak)


def check(cfg: RunConfig, cluster: Cluster) -> None:
    refuse_what_cannot_fit(cfg, cluster, on_gpu=False, memory=memory_of(cfg, on_gpu=False))


def applied(message: str, cfg: RunConfig) -> tuple[RunConfig, dict[str, str]]:
    """The config with the settings that a refusal names."""
    settings = re.findall(r"--set (\S+)=(\S+?)(?=[ :])", message)
    values = load_config(None, [f"{name}={value}" for name, value in {**SMALL, **dict(settings)}.items()])
    parts = {"train": cfg.train.model_dump(), "data": cfg.data.model_dump(), "model": cfg.model.model_dump()}
    for name, _ in settings:
        part, key = name.split(".")
        parts[part][key] = getattr(getattr(values, part), key)
    return RunConfig.model_validate(cfg.model_dump() | parts), dict(settings)


@pytest.mark.parametrize(
    ("enough", "named"),
    [
        ({"train__recompute": "true"}, {"train.recompute"}),
        ({"train__recompute": "true", "train__gather": "block"}, {"train.recompute", "train.gather"}),
        (
            {"train__recompute": "true", "train__gather": "block", "data__batch_clips": 4},
            {"train.recompute", "train.gather", "data.batch_clips", "train.micro_batches"},
        ),
    ],
)
def test_settings_that_a_refusal_names_do_fit_and_are_the_least_that_do(enough, named):
    given = {"data__batch_clips": 16, "train__gather": "step"}
    cfg = config(**given)
    limit_gb = needed_gb(config(**given | enough)) + 1e-4
    cluster = Cluster(cpu_memory_gb=limit_gb)
    with pytest.raises(UserError) as refused:
        check(cfg, cluster)
    (line,) = refused.value.lines
    assert f"a worker needs {needed_gb(cfg):.3g} GB of CPU memory" in line
    assert f"the cluster has {limit_gb:g} GB" in line
    fitting, settings = applied(line, cfg)
    assert settings.keys() == named
    clips = fitting.data.batch_clips * fitting.train.micro_batches
    assert clips == cfg.data.batch_clips * cfg.train.micro_batches  # the same global batch
    check(fitting, cluster)
    assert line.endswith(f"{needed_gb(fitting):.3g} GB")


def test_more_workers_are_named_as_far_as_they_are_declared():
    tightest = {"train__recompute": "true", "train__gather": "block", "data__batch_clips": 1}
    cfg = config(train__micro_batches=8, **tightest)
    cluster = Cluster(cpu_memory_gb=needed_gb(cfg) - 0.01, workers=8)
    with pytest.raises(UserError, match=r"use --set train.workers=(4|8): ") as refused:
        check(cfg, cluster)
    fitting, _ = applied(str(refused.value), cfg)
    check(fitting, cluster)
    with pytest.raises(UserError, match="no smaller setting"):
        check(cfg, cluster.model_copy(update={"workers": None}))


def test_more_workers_that_would_get_an_empty_micro_batch_need_its_memory():
    """Of pictures, though all clips are sound alone."""
    kinds: Kinds = frozenset(["sound"])
    alone, two = (
        memory_of(config(train__workers=n, train__micro_batches=3), on_gpu=False, kinds=kinds) for n in (1, 2)
    )
    full = memory_of(config(train__workers=2, train__micro_batches=4), on_gpu=False, kinds=kinds)
    assert alone.bucket.kind == full.bucket.kind == "sound"
    assert two.bucket.kind == "picture"


@pytest.mark.parametrize(
    ("workers", "shared_by", "remedy"),
    [
        (4, 1, "use --set train.workers=3, or give --cluster a larger one"),
        (4, 2, "use --set train.workers=2, or give --cluster a larger one"),
        (4, 4, "give --cluster a larger one"),
    ],
)
def test_more_workers_than_are_declared_are_refused(workers: int, shared_by: int, remedy: str):
    cfg = config(train__workers=workers, train__sequence_parallel=shared_by)
    with pytest.raises(UserError) as refused:
        dry_run(cfg, Cluster(workers=3))
    assert refused.value.lines == [f"train.workers=4, but the cluster has workers=3; {remedy}"]
    assert dry_run(cfg, Cluster(workers=4))["cluster"]["workers"] == 4


def test_sizes_that_are_proposed_are_those_of_the_configs():
    for name, size in SIZES.items():
        model = load_config(CONFIGS / f"{name}.yaml", []).model
        assert (model.depth, model.width, model.head_dim) == size


@pytest.mark.parametrize(
    "path", sorted((CONFIGS / "as_published").glob("*.yaml")), ids=lambda path: path.stem
)
def test_what_was_published_fits_the_gpu_of_its_header(path: Path):
    cfg = load_config(path, [])
    cluster = declared_cluster("h100", cfg.train.precision, cfg.train.workers)
    kinds: Kinds = frozenset({"sound"}) if path.stem == "audio" else None
    (need,) = needs(memory_of(cfg, on_gpu=True, kinds=kinds), cluster, on_gpu=True)
    assert need.fits
    told = re.search(
        r"^# Hardware: one GPU of 80 GB, of which (\d+) are reckoned with", path.read_text("utf-8"), re.M
    )
    assert told
    assert need.gb == pytest.approx(int(told[1]), abs=1)


@pytest.mark.parametrize(
    "path", [*sorted(CONFIGS.glob("av_*.yaml")), *sorted((CONFIGS / "as_published").glob("*.yaml"))]
)
def test_a_header_says_the_hours_that_a_dry_run_does(path: Path):
    cfg = load_config(path, [])
    cluster = declared_cluster("h100", cfg.train.precision, cfg.train.workers)
    buckets = largest_buckets(cfg, frozenset({"sound"}) if path.stem == "audio" else None)
    found = []
    for bucket in buckets:
        layout = shaped_layout(cfg, bucket.clip_s, bucket.size)
        count = Counts.of(build_on_meta(cfg, layout), cfg.train.workers)
        takes = step_time(cfg, layout, cluster, count, bucket.batch_clips)
        assert takes
        found.append(takes.as_facts(cfg, cluster)["run_hours"])
    told = re.search(r"^# Duration: about ([\d.]+) hours", path.read_text("utf-8"), re.M)
    assert told
    assert float(told[1]) == pytest.approx(max(found), rel=0.05)


def test_the_three_kinds_as_published_come_in_the_numbers_that_the_config_says():
    path = CONFIGS / "as_published" / "mixed.yaml"
    films, sounds, stills = (bucket.batch_clips for bucket in buckets_of(load_config(path, [])))
    assert f"# {films} films, {stills} stills or {sounds} sounds\n" in path.read_text("utf-8")


def test_nothing_is_refused_where_nothing_is_declared():
    facts = dry_run(config())
    assert (facts["seconds"], facts["worker_bytes"]["needed_gb"]) == (None, {})


def test_a_dry_run_refuses_and_tells_the_time():
    cfg = config()
    with pytest.raises(UserError, match="a worker needs"):
        dry_run(cfg, Cluster(cpu_memory_gb=1.1))
    assert "time: about" in describe(dry_run(cfg, Cluster(tflops=1, cpu_memory_gb=64)))


def test_the_page_shows_what_its_commands_print():
    page = (CONFIGS.parent / "docs" / "infrastructure.md").read_text("utf-8")
    commands = re.findall(r"^worldmodel (.*--cluster.*)$", page, re.MULTILINE)
    fits, too_small = (worldmodel(*shlex.split(command), cwd=CONFIGS.parent) for command in commands)
    shown = re.search(r"^memory of a worker.*?(?=^```)", page, re.MULTILINE | re.DOTALL)
    assert shown
    assert set(shown[0].splitlines()) < set(fits.stdout.splitlines())
    assert too_small.stderr.strip() in page
    assert (fits.returncode, too_small.returncode) == (0, 2)


def test_a_known_gpu_has_its_numbers_and_a_file_overrides_them(tmp_path: Path):
    assert declared_cluster("h100", "bf16", 8).tflops == GPUS["h100"].bf16_tflops
    assert declared_cluster("h100", "fp32", 8).tflops == GPUS["h100"].fp32_tflops
    assert declared_cluster("h100", "bf16", 16).interconnect_gb_s == 50  # more than one node
    file = tmp_path / "cluster.yaml"
    file.write_text("gpu: h100\ngpu_memory_gb: 64\n")
    found = declared_cluster(str(file), "bf16", 8)
    assert (found.gpu_memory_gb, found.memory_gb_s) == (64, GPUS["h100"].memory_gb_s)


def test_a_cluster_that_is_no_cluster_is_refused_in_words(tmp_path: Path):
    file = tmp_path / "cluster.yaml"
    file.write_text("gpu: h101\nflops: 3\nworkers: none\n")
    preset = CONFIGS / "debug_cpu.yaml"
    lines = complaint("train", preset, "--dry-run", "--cluster", file, cwd=tmp_path)
    assert lines == [
        f"{file}:2: unknown key flops; did you mean tflops?",
        f"{file}:3: workers must be a whole number, got 'none'",
    ]
    (line,) = complaint("train", preset, "--cluster", "h100", cwd=tmp_path)
    assert "add --dry-run" in line
    with pytest.raises(UserError, match=r"--cluster h101: no such GPU or file; there is h100"):
        declared_cluster("h101", "bf16", 1)


def test_a_step_takes_what_it_computes_and_what_it_waits_for():
    cluster = Cluster(tflops=1.0, efficiency=0.5, interconnect_gb_s=1.0, memory_gb_s=10.0)

    def seconds(**settings: object):
        cfg = config(train__micro_batches=4, **settings)
        layout = Layout.from_specs(cfg, codec_spec(cfg.codec.video), codec_spec(cfg.codec.audio))
        count = Counts.of(build_on_meta(cfg, layout), cfg.train.workers)
        found = step_time(cfg, layout, cluster, count, cfg.data.batch_clips)
        assert found is not None
        return found, count

    alone, count = seconds(train__workers=1)
    two, _ = seconds(train__workers=2)
    by_step, _ = seconds(train__workers=2, train__gather="step")
    again, _ = seconds(train__workers=1, train__recompute="true")
    assert (alone.communication_s, two.compute_s) == (0, pytest.approx(alone.compute_s / 2))
    # Half of bf16 weights and fp32 gradients come from the other worker, and half of the teacher's weights.
    assert by_step.communication_s == pytest.approx((6 * count.whole + 2 * count.averaged) / 2 / 1e9)
    assert two.communication_s > 1.7 * by_step.communication_s  # for each of two micro-batches
    assert 1.2 < again.compute_s / alone.compute_s < 4 / 3


def test_stages_move_what_they_do_not_hold():
    """Two workers with two micro-batches each: half of it comes from the other."""
    cluster = Cluster(tflops=1.0, interconnect_gb_s=1.0)

    def sent(**settings: object) -> tuple[float, Counts]:
        cfg = config(train__workers=2, train__micro_batches=4, **settings)
        layout = Layout.from_specs(cfg, codec_spec(cfg.codec.video), codec_spec(cfg.codec.audio))
        count = Counts.of(build_on_meta(cfg, layout), cfg.train.workers)
        found = step_time(cfg, layout, cluster, count, cfg.data.batch_clips)
        assert found is not None
        return found.communication_s * 2 * 1e9, count

    (none, count), (one, _), (two, _) = (sent(train__zero_stage=stage) for stage in range(3))
    assert none == pytest.approx(8 * count.whole)  # gradients to and fro
    assert one == pytest.approx(6 * count.whole + 2 * count.averaged)
    assert two == pytest.approx(one + 4 * count.whole)  # gradients of each micro-batch


def test_what_a_replica_cannot_hold_is_put_in_shards_and_last_on_the_machine():
    cfg = config(train__device="cuda", train__workers=2, train__zero_stage=0)
    replica, sharded = (
        memory_of(
            cfg.model_copy(update={"train": cfg.train.model_copy(update={"zero_stage": n})}), on_gpu=True
        )
        for n in (0, 3)
    )
    between = GPU_MARGIN.over((replica.peak + sharded.peak) // 2)
    with pytest.raises(UserError, match=r"; use --set train\.zero_stage=3: "):
        refuse_what_cannot_fit(cfg, Cluster(gpu_memory_gb=between), on_gpu=True, memory=replica)


def test_what_is_taken_back_leaves_settings_that_go_together():
    """An offloaded optimizer needs gather=block, which alone would not have been enough."""
    cfg = config(
        model__depth=6,
        model__width=1536,
        train__device="cuda",
        train__workers=1,
        train__gather="step",
        data__batch_clips=1,
    )
    with pytest.raises(UserError, match=r"train\.offload_optimizer=true") as told:
        refuse_what_cannot_fit(
            cfg, Cluster(gpu="h100", gpu_memory_gb=3.2), on_gpu=True, memory=memory_of(cfg, on_gpu=True)
        )
    smaller, _ = applied(str(told.value), cfg)
    assert smaller.train.gather == "block"
    assert GPU_MARGIN.over(memory_of(smaller, on_gpu=True).peak) <= 3.2
