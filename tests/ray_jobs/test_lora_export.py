"""The export of a LoRA run: a merged model as any other, and the LoRA apart, for its own base only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ray_jobs.accounting import Ledger
from ray_jobs.errors import UserError
from ray_jobs.export import export_run, export_untrained
from ray_jobs.model_fit import check_layout, init_lines
from ray_jobs.preflight import check_given
from ray_jobs.run_folder import RunFolder
from ray_jobs.runtime_env import ROOT
from ray_jobs.train import check_adapted
from ray_jobs.train_worker import layout_of
from tests.ray_jobs.test_cli_errors import complaint
from tests.worldmodel.synthetic import open_model, stream_of, tiny_config
from worldmodel.config import RunConfig
from worldmodel.export import load_model, save_model
from worldmodel.load_config import load_config
from worldmodel.lora import LoraError, base_of
from worldmodel.model_folder import WEIGHTS
from worldmodel.pipeline import WorldModelPipeline
from worldmodel.train.checkpoint import shard_name, write_checkpoint
from worldmodel.train.engine import PlainEngine
from worldmodel.train.loop import Hooks, train


@dataclass(frozen=True)
class LoraRun:
    cfg: RunConfig
    base: Path
    run: Path
    commit: Path


@pytest.fixture
def lora_run(tmp_path: Path) -> LoraRun:
    """Two steps of one process, committed as a worker commits."""
    base = tmp_path / "base"
    cfg = tiny_config(name="mine", storage=str(tmp_path))
    layout = layout_of(cfg)
    save_model(base, open_model(cfg, layout).state_dict(), layout, cfg, {})
    given = cfg.train.model_dump() | {"steps": 2, "init": str(base), "lora": {"rank": 2}}
    cfg = RunConfig.model_validate(cfg.model_dump() | {"train": given})
    folder = RunFolder(cfg)
    commit = folder.path / "checkpoints" / "step-0000002-001"
    commit.mkdir(parents=True)
    folder.claim(cfg, "pytest")
    engine = PlainEngine(cfg, layout)
    hooks = Hooks(commit=lambda step: write_checkpoint(commit, engine, step, {"base": base_of(cfg)}))
    train(engine, stream_of(layout), cfg, layout, start_step=0, hooks=hooks)
    Ledger("of a plan").to_files(str(commit), rank=0)
    return LoraRun(cfg, base, folder.path, commit)


def change(base: Path) -> None:
    path = str(base / "transformer" / WEIGHTS)
    weights = load_file(path)
    weights["video_in.weight"] += 1e-3
    save_file(weights, path)


def test_a_base_with_the_lora_loaded_is_the_merged_model_bit_for_bit(lora_run):
    export = export_run(lora_run.run, lora_run.run / "export")
    merged, cfg, _ = load_model(export)
    assert cfg == lora_run.cfg
    assert (export / "codecs" / "video").is_dir()
    pipe = WorldModelPipeline.from_pretrained(lora_run.base)
    begun = {name: value.clone() for name, value in pipe.model.state_dict().items()}
    pipe.load_lora(lora_run.run)
    ours, theirs = pipe.model.state_dict(), merged.state_dict()
    assert ours.keys() == theirs.keys() == begun.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    changed = {name for name in ours if not torch.equal(ours[name], begun[name])}
    assert changed
    assert all(".attention." in name or ".feed_forward." in name for name in changed)
    before, _, _ = load_model(export_untrained(lora_run.cfg, lora_run.run / "untrained"))
    assert all(torch.equal(value, begun[name]) for name, value in before.state_dict().items())
    with pytest.raises(LoraError, match=rf"a LoRA of {lora_run.base}, .* those of export are"):
        WorldModelPipeline.from_pretrained(export).load_lora(export)
    (line,) = complaint("generate", "bounce", "--prompt", "a red steel ball", "--lora", lora_run.run)
    assert line.startswith(f"{export / 'lora'}: a LoRA of {lora_run.base}, whose weights are ")
    assert "and those of bounce are" in line


def test_a_run_neither_goes_on_nor_is_exported_when_its_base_has_changed(lora_run):
    check_adapted(lora_run.cfg, lora_run.commit)
    change(lora_run.base)
    said = r"train.init: .*base has other weights \(sha256 .* bring them back, or train under another name"
    with pytest.raises(UserError, match=said):
        check_adapted(lora_run.cfg, lora_run.commit)
    with pytest.raises(UserError, match=said):
        export_run(lora_run.run, lora_run.run / "export")


def test_what_is_damaged_is_named_in_one_line_and_nothing_is_exported(lora_run):
    shard, out = lora_run.commit / shard_name(0, 1), lora_run.run / "export"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    (line,) = complaint("export", lora_run.run, "--out", out)
    assert line.startswith(f"{shard}: changed since it was written")
    shard.write_bytes(whole)
    weights = lora_run.base / "transformer" / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-9])
    (line,) = complaint("export", lora_run.run, "--out", out)
    assert line.startswith(f"{weights}: missing or damaged (")
    weights.unlink()
    (line,) = complaint("export", lora_run.run, "--out", out)
    assert line.startswith(f"{weights}: missing or damaged (")
    assert not out.exists()


def test_a_lora_is_checked_before_anything_starts(lora_run, monkeypatch, tmp_path):
    assert init_lines(lora_run.cfg, layout_of(lora_run.cfg)) == [
        f"adapts {lora_run.base} by a LoRA of rank 2"
    ]
    deeper = lora_run.cfg.model_copy(update={"model": lora_run.cfg.model.model_copy(update={"depth": 4})})
    with pytest.raises(UserError, match=r"not that of train.init=.*: set model.depth=3"):
        check_layout(deeper)
    monkeypatch.setattr("ray_jobs.models.find_spec", lambda name: None)
    data = lora_run.cfg.data.model_copy(update={"manifest": str(tmp_path)})
    with pytest.raises(UserError, match=r"train.lora needs peft, .* pip install 'worldmodel\[lora\]'"):
        check_given(lora_run.cfg.model_copy(update={"data": data}))


def test_a_base_of_other_latents_is_named_and_no_lora_adapts_it():
    path, given = ROOT / "configs" / "shipped" / "bounce.yaml", ["train.init=bounce", "data.manifest=clips"]
    cfg = load_config(path, given)
    assert not [line for line in init_lines(cfg, layout_of(cfg)) if "latents" in line]
    other = load_config(path, [*given, "codec.video=pca-4x8x8-48"])
    assert (
        "its latents of video are those of patchconv-4x8x8-48, this run's are of pca-4x8x8-48: what they "
        "mean has to be learned"
    ) in init_lines(other, layout_of(other))
    adapted = load_config(path, [*given, "codec.video=pca-4x8x8-48", "train.lora.rank=8"])
    said = r"makes latents of patchconv-4x8x8-48, and .* codecs: set codec.video=patchconv-4x8x8-48"
    with pytest.raises(UserError, match=said):
        check_layout(adapted)


def test_another_lora_is_another_config(lora_run):
    lora = lora_run.cfg.train.model_copy(
        update={"lora": lora_run.cfg.train.lora.model_copy(update={"rank": 8})}
    )
    with pytest.raises(UserError, match=r"another config \(train.lora.rank: 2 -> 8\)"):
        RunFolder(lora_run.cfg).check_free(lora_run.cfg.model_copy(update={"train": lora}))
