"""REPA on real files: features of frozen encoders, made beside the latents, are what the student follows."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from ray_jobs.errors import UserError
from ray_jobs.index import index_sources
from ray_jobs.models import check_encoders
from ray_jobs.plan import make_plan
from ray_jobs.preflight import check_given
from ray_jobs.render import clip_name, render_clip
from ray_jobs.resolve import resolved
from ray_jobs.stages import EncodeBatch, to_latent_batch
from ray_jobs.train_worker import layout_of
from tests.avtok.small_encoders import dino, wav2vec
from tests.ray_jobs.test_cli_errors import worldmodel
from worldmodel.config import RunConfig
from worldmodel.train.engine import PlainEngine
from worldmodel.train.loop import Hooks, train


def config_of(clips: Path, encoders: list[dict[str, str]]) -> RunConfig:
    return RunConfig.model_validate(
        {
            "data": {
                "manifest": str(clips),
                "clip_s": 1.0,
                "batch_clips": 2,
                "held_out": 0.0,
                "targets": encoders,
                "sandbox": False,
            },
            "model": {"depth": 3, "width": 32, "head_dim": 16},
            "objective": {"rep": "repa", "dual": False, "align_weight": 0.5},
            "optim": {"lr": 3e-3, "warmup_steps": 2},
            "train": {"steps": 16, "micro_batches": 1, "device": "cpu", "precision": "fp32"},
        }
    )


def test_a_student_follows_features_of_real_clips(tmp_path):
    clips = tmp_path / "clips"
    clips.mkdir()
    for index in range(2):
        render_clip("bounce_one", index, out=str(clips), seed=0, duration_s=1.0)
    encoders = [
        {"name": "dino", "encoder": str(dino(tmp_path / "dino"))},
        {"name": "wav", "encoder": str(wav2vec(tmp_path / "wav")), "modality": "audio"},
    ]
    cfg = resolved(config_of(clips, encoders))
    assert [target.width for target in cfg.data.targets] == [16, 16]
    assert resolved(cfg) is cfg
    index_sources([str(clips)], out=str(tmp_path / "manifest.parquet"))
    plan = make_plan(str(tmp_path / "manifest.parquet"), cfg)
    batch = to_latent_batch(EncodeBatch(plan, cfg).encode_batch(0, 0, np.array([0, 1])))
    rows: list[dict[str, float]] = []
    engine = PlainEngine(cfg, layout_of(cfg))
    hooks = Hooks(commit=lambda step: None, on_row=rows.append)
    train(engine, iter([[batch]] * 16), cfg, layout_of(cfg), start_step=0, hooks=hooks)
    for modality in ("video", "audio"):
        first, last = (np.mean([row[f"align_{modality}"] for row in part]) for part in (rows[:4], rows[-4:]))
        assert last < 0.8 * first
        assert rows[-1][f"cosine_{modality}"] > 0


def test_a_folder_that_is_no_encoder_is_told_before_anything_starts(tmp_path):
    cfg = config_of(tmp_path, [{"name": "dino", "encoder": str(tmp_path / "nowhere")}])
    with pytest.raises(UserError, match=r"targets: dino: .*nowhere.*FileNotFoundError; give the folder"):
        resolved(cfg)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="names no hidden_size; set"):
        resolved(config_of(tmp_path, [{"name": "dino", "encoder": str(tmp_path)}]))
    known = config_of(tmp_path, [{"name": "dino", "encoder": str(tmp_path), "width": 16}])
    with pytest.raises(UserError, match=r"has no preprocessor_config\.json, no weights .* on every node"):
        check_given(known)


def test_a_width_that_is_not_the_encoder_s_is_told_before_anything_starts(tmp_path):
    target = {"name": "dino", "encoder": str(dino(tmp_path / "dino"))}
    cfg = config_of(tmp_path, [{**target, "width": 17}])
    with pytest.raises(UserError, match=r"targets: dino: width=17, and features of .* are 16 wide; use"):
        check_given(cfg)
    check_encoders(config_of(tmp_path, [{**target, "width": 16}]).data.targets)


def test_an_encoder_of_the_other_modality_is_told_before_anything_is_loaded(tmp_path):
    folders = {"video": wav2vec(tmp_path / "ear"), "audio": dino(tmp_path / "eye")}
    for modality, folder in folders.items():
        for weights in folder.glob("*.safetensors"):
            weights.write_bytes(b"")
        wrong = {"name": "one", "encoder": str(folder), "modality": modality, "width": 16}
        right = "audio" if modality == "video" else "video"
        with pytest.raises(
            UserError, match=f"targets: one: .* is no encoder of .*; give one, or modality: {right}"
        ):
            check_given(config_of(tmp_path, [wrong]))
        check_encoders(config_of(tmp_path, [{**wrong, "modality": right}]).data.targets)


def test_a_preprocessor_that_is_no_mapping_says_nothing_of_the_modality(tmp_path):
    folder = dino(tmp_path / "eye")
    for said in ("5", "null", "not json"):
        (folder / "preprocessor_config.json").write_text(said)
        target = {"name": "one", "encoder": str(folder), "modality": "audio", "width": 16}
        check_encoders(config_of(tmp_path, [target]).data.targets)


def test_widths_that_a_config_does_not_settle_are_left_to_who_knows_them(tmp_path):
    target = {"name": "focal", "encoder": str(dino(tmp_path / "focal")), "width": 128}
    (cfg,) = config_of(tmp_path, [target]).data.targets
    for said in ({"hidden_sizes": [192, 768]}, {"vision_config": None}, []):
        (tmp_path / "focal" / "config.json").write_text(json.dumps(said))
        check_encoders([cfg])
    with pytest.raises(UserError, match="ValueError; give the folder of a transformers encoder"):
        resolved(config_of(tmp_path, [{**target, "width": None}]))


@pytest.mark.ray
def test_the_whole_job_follows_an_encoder_on_clips_of_a_tar_by_relative_paths(tmp_path):
    """What decoders and ranks both read lies where the command was given; encoders run in ranks, too, where
    held-out clips are made; and a clip in a tar is shown beside its rollout."""
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:
        for index in range(4):
            render_clip("bounce_one", index, out=str(tmp_path), seed=0, duration_s=1.0)
            shard.add(tmp_path / clip_name(index), f"{index}.mp4")
    dino(tmp_path / "dino")
    cfg = config_of(tmp_path, [{"name": "dino", "encoder": "dino"}]).model_dump(mode="json")
    cfg["name"], cfg["data"]["manifest"] = "followed", "shard.tar"
    cfg["data"] |= {"cache": "cache", "held_out": 0.3, "decode_actors": 1}
    cfg["train"] |= {"steps": 2, "checkpoint_every": 2, "evaluate_every": 2, "evaluate_clips": 1}
    cfg["train"]["workers"] = 1
    cfg["rollout"] |= {"prefix_s": 0.5, "seconds": 0.5, "steps": 1, "clips": 1, "show": 1, "actors": 1}
    (tmp_path / "cfg.json").write_text(json.dumps(cfg))
    done = worldmodel("train", "cfg.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in (tmp_path / "runs/followed/metrics.jsonl").read_text().splitlines()]
    assert any("cosine_video" in row for row in rows)
    assert any("eval_video" in row for row in rows)
    assert [*(tmp_path / "runs/followed/rollouts").glob("*_truth.mp4")]
    assert len([*(tmp_path / "cache").rglob("*.safetensors")]) == 4
