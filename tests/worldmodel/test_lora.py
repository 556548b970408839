"""A LoRA learns beside a frozen base, is kept apart and merged, and comes off a pipeline without a trace."""

from __future__ import annotations

import math
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.worldmodel.synthetic import make_batch, open_gates, open_model, stream_of, tiny_config, tiny_layout
from worldmodel import lora as lora_module
from worldmodel.config import RunConfig
from worldmodel.draw import draw
from worldmodel.export import save_model
from worldmodel.flow import homogeneous_levels
from worldmodel.layout import Layout
from worldmodel.load_config import ConfigError, load_config
from worldmodel.lora import (
    WEIGHTS_FILE,
    LoraError,
    base_of,
    begin_lora,
    check_same_base,
    folder_hash,
    merge_lora,
    read_lora,
    save_lora,
    weights_hash,
)
from worldmodel.model.transformer import WorldTransformer
from worldmodel.model_folder import WEIGHTS
from worldmodel.pipeline import WorldModelPipeline
from worldmodel.randomness import SampleRandom
from worldmodel.train.checkpoint import CheckpointReader, load_checkpoint, write_checkpoint
from worldmodel.train.engine import TEACHER_PREFIX, PlainEngine, build_student
from worldmodel.train.loop import Hooks, train


def lora_config(base: Path, **train: object) -> RunConfig:
    settings = {"init": str(base), "lora": {"rank": 4, "alpha": 8}, "steps": 4, **train}
    return tiny_config(optim={"lr": 1e-2}, train=settings)


def output_of(model: WorldTransformer, layout: Layout) -> Tensor:
    levels = homogeneous_levels(layout, 4, 0.5)
    rng = SampleRandom(0, 0, (0, 1, 2, 3))
    one = draw(make_batch(layout), layout, tiny_config().objective, rng, levels)
    tokens, _, _ = one.tokens_at(levels.student_BK)
    with torch.no_grad():
        return model(tokens, levels.student_BK, levels.level_of_BL, layout=layout)["video"]


def run(engine: PlainEngine, cfg: RunConfig, *, start: int = 0, stop_at: int = -1) -> list[float]:
    layout, rows, calls = tiny_layout(cfg), list[dict[str, float]](), iter(range(start, cfg.train.steps + 1))
    hooks = Hooks(commit=lambda step: None, on_row=rows.append, should_stop=lambda: next(calls) == stop_at)
    train(engine, stream_of(layout, start=start), cfg, layout, start_step=start, hooks=hooks)
    return [row["loss"] for row in rows if "loss" in row]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model with open gates."""
    folder, cfg = tmp_path_factory.mktemp("base"), tiny_config()
    save_model(folder, open_model(cfg, tiny_layout(cfg)).state_dict(), tiny_layout(cfg), cfg, {})
    return folder


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[PlainEngine, Path]:
    """A trained LoRA: its engine, and its folder."""
    cfg, folder = lora_config(base), tmp_path_factory.mktemp("lora")
    engine = PlainEngine(cfg, tiny_layout(cfg))
    run(engine, cfg)
    given = base_of(cfg)
    assert given is not None
    save_lora(folder, {n.removeprefix(TEACHER_PREFIX): w for n, w in engine.ema.items()}, cfg, given)
    return engine, folder


@pytest.fixture
def model(base: Path) -> WorldTransformer:
    cfg = tiny_config(train={"init": str(base)})
    return build_student(cfg, tiny_layout(cfg)).transformer.requires_grad_(False).eval()


@pytest.fixture
def pipe(model: WorldTransformer) -> WorldModelPipeline:
    return WorldModelPipeline(model, tiny_config(), "x", video=None, audio=None, name="tiny")


def test_before_the_first_step_the_output_is_the_base_s_bit_for_bit(base, model, layout):
    student = build_student(lora_config(base), layout).transformer
    assert torch.equal(output_of(student, layout), output_of(model, layout))
    again = build_student(lora_config(base), layout).transformer
    ours, theirs = student.state_dict(), again.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)  # every rank draws the same


def test_only_adapters_and_the_head_learn(base, trained, layout):
    engine, _ = trained
    adapters = {name for name in engine.master if not name.startswith("head.")}
    assert adapters == engine.ema.keys()
    assert all(".lora_" in name for name in adapters)
    begun = dict(build_student(lora_config(base), layout).named_parameters())
    same = {n for n, parameter in engine.student.named_parameters() if torch.equal(parameter, begun[n])}
    assert same >= begun.keys() - engine.master.keys()
    # Nothing comes after what the last block makes of text and actions.
    assert all(name.startswith("transformer.blocks.2.feed_forward.") for name in same & engine.master.keys())
    kinds = {name.partition(".lora_")[0].split(".", 3)[3] for name in adapters}
    paths = {f"feed_forward.{m}.{i}" for m in ("video", "audio", "text", "action") for i in (0, 2)}
    assert kinds == {"attention.qkv", "attention.out"} | paths


def test_recomputed_blocks_learn_as_kept_ones(base):
    losses = []
    for recompute in (False, True):
        cfg = lora_config(base, recompute=recompute, steps=3)
        losses.append(run(PlainEngine(cfg, tiny_layout(cfg)), cfg))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[0][-1] != losses[0][0]


def test_a_resumed_lora_equals_an_uninterrupted_one_and_its_checkpoint_holds_no_base(base, trained, tmp_path):
    cfg = lora_config(base)
    first, second = (PlainEngine(cfg, tiny_layout(cfg)) for _ in range(2))
    run(first, cfg, stop_at=2)
    write_checkpoint(tmp_path, first, 2, {})
    assert load_checkpoint(tmp_path, second) == 2
    run(second, cfg, start=2)
    whole, _ = trained
    assert all(torch.equal(second.master[name], value) for name, value in whole.master.items())
    assert all(torch.equal(second.ema[name], value) for name, value in whole.ema.items())
    reader = CheckpointReader(tmp_path)
    assert all(".lora_" in name or name.startswith("head.") for name in reader.model["shapes"])
    assert reader.ema_weights().keys() == {name.removeprefix(TEACHER_PREFIX) for name in whole.ema}


def test_merged_weights_give_the_outputs_of_base_and_adapters(trained, model, layout):
    engine, folder = trained
    before = output_of(model, layout)
    merge_lora(model, read_lora(folder), name="tiny")
    merged = output_of(model, layout)
    assert torch.allclose(merged, output_of(engine.teacher, layout), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(merged, before, rtol=1e-2, atol=1e-2)
    assert not [name for name, _ in model.named_modules() if "lora" in name]


def test_the_folder_is_one_that_peft_loads(trained, model, layout):
    engine, folder = trained
    loaded = peft.PeftModel.from_pretrained(model, str(folder))
    ours = output_of(loaded.get_base_model(), layout)
    assert torch.allclose(ours, output_of(engine.teacher, layout), rtol=1e-5, atol=1e-6)


def test_a_pipeline_without_its_lora_is_the_base_bit_for_bit(trained, pipe, layout):
    _, folder = trained
    before, weights = output_of(pipe.model, layout), weights_hash(pipe.model.state_dict())
    pipe.load_lora(folder)
    whole = output_of(pipe.model, layout)
    pipe.load_lora(folder, scale=0.5)  # in its place
    half = output_of(pipe.model, layout)
    assert 0.1 < float((half - before).norm() / (whole - before).norm()) < 0.9
    pipe.load_lora(folder, scale=0.0)
    assert torch.equal(output_of(pipe.model, layout), before)
    pipe.load_lora(folder)
    assert torch.equal(output_of(pipe.model, layout), whole)
    pipe.unload_lora()
    pipe.unload_lora()
    assert torch.equal(output_of(pipe.model, layout), before)
    assert weights_hash(pipe.model.state_dict()) == weights


def test_a_lora_of_another_base_is_refused_in_one_line_and_changes_nothing(trained, pipe, base, layout):
    _, folder = trained
    open_gates(pipe.model, seed=1)
    before = output_of(pipe.model, layout)
    with pytest.raises(LoraError) as error:
        pipe.load_lora(folder)
    ours, theirs = folder_hash(base)[:12], weights_hash(pipe.model.state_dict())[:12]
    assert str(error.value) == (
        f"{folder}: a LoRA of {base}, whose weights are {ours}, and those of tiny are {theirs}; "
        "give the model that it was trained on"
    )
    assert torch.equal(output_of(pipe.model, layout), before)


def test_a_lora_without_a_hash_is_refused_by_what_does_not_fit(trained, base, tmp_path):
    _, folder = trained
    text = (folder / "adapter_config.json").read_text()
    (tmp_path / "adapter_config.json").write_text(text.replace("sha256:", "main"))
    save_file(load_file(str(folder / WEIGHTS_FILE)), str(tmp_path / WEIGHTS_FILE))
    for model, message in (
        ({"mlp_ratio": 2.0}, r"blocks\.0\.feed_forward\.audio\.0 of other has width 64, not 128; give "),
        ({"depth": 2}, r"other has no linear layer blocks\.2\.attention\.out; give "),
    ):
        cfg = tiny_config(model=model)
        with pytest.raises(LoraError, match=message):
            merge_lora(open_model(cfg, tiny_layout(cfg)), read_lora(tmp_path), name="other")


def test_a_folder_without_a_lora_and_a_damaged_one_are_told(trained, base, tmp_path):
    _, folder = trained
    with pytest.raises(LoraError, match=r"no LoRA \(adapter_config.json\) here; give the folder lora of an"):
        read_lora(base)
    kept = tmp_path / "export" / "lora"
    kept.mkdir(parents=True)
    for path in folder.iterdir():
        (kept / path.name).write_bytes(path.read_bytes())
    assert read_lora(tmp_path).folder == kept  # a run
    assert read_lora(tmp_path / "export").folder == kept
    (kept / WEIGHTS_FILE).write_bytes((folder / WEIGHTS_FILE).read_bytes()[:-9])
    with pytest.raises(LoraError, match=r"missing or damaged files .*; export the run again"):
        read_lora(kept)


def test_halves_that_do_not_go_together_are_refused_before_the_model_is_touched(
    trained, base, layout, tmp_path
):
    _, folder = trained
    weights = load_file(str(folder / WEIGHTS_FILE))
    text = (folder / "adapter_config.json").read_text()
    pipe = WorldModelPipeline.from_pretrained(base)
    before = output_of(pipe.model, layout)
    half = {name: w for name, w in weights.items() if "lora_A" in name}
    for config, given, message in (
        (text.replace('"r": 4', '"r": 5'), weights, r"has ranks 4 and 4, and adapter_config.json says r=5"),
        (text, half, r"has no lora_B\.weight; export or copy it again"),
        (text, {n: w[:2] if "lora_A" in n else w for n, w in weights.items()}, r"has ranks 2 and 4"),
    ):
        (tmp_path / "adapter_config.json").write_text(config)
        save_file({name: w.contiguous() for name, w in given.items()}, str(tmp_path / WEIGHTS_FILE))
        with pytest.raises(LoraError, match=message):
            pipe.load_lora(tmp_path)
    assert torch.equal(output_of(pipe.model, layout), before)
    pipe.load_lora(folder)  # nothing is in its way
    pipe.unload_lora()
    assert torch.equal(output_of(pipe.model, layout), before)


def test_the_hash_is_of_values_whatever_file_holds_them(base, tmp_path):
    weights = load_file(str(base / "transformer" / WEIGHTS))
    (tmp_path / "transformer").mkdir()
    save_file(
        dict(reversed(list(weights.items()))),
        str(tmp_path / "transformer" / WEIGHTS),
        metadata={"other": "1"},
    )
    assert folder_hash(tmp_path) == folder_hash(base)
    weights["video_in.bias"][0] += 1e-6
    assert weights_hash(weights) != folder_hash(base)


def test_a_base_that_changed_since_is_refused(base):
    now = base_of(lora_config(base))
    assert now == {"name": str(base), "sha256": folder_hash(base)}
    check_same_base(now, now)
    check_same_base(None, now)
    with pytest.raises(
        LoraError, match=r"has other weights \(sha256 .*\) than when this LoRA was begun \(0000"
    ):
        check_same_base({"name": str(base), "sha256": "0" * 64}, now)


def test_a_run_whose_model_is_not_the_base_s_is_refused(base, layout):
    with pytest.raises(
        LoraError, match=r"not that of train.init=.*, which stays as it is: set model.depth=3"
    ):
        build_student(tiny_config(model={"depth": 2}, train={"init": str(base), "lora": {}}), layout)
    with pytest.raises(LoraError, match=r": set objective.prediction=x"):
        build_student(
            tiny_config(objective={"prediction": "v"}, train={"init": str(base), "lora": {}}), layout
        )


def test_a_rank_that_no_layer_has_is_refused(base, layout):
    student = build_student(lora_config(base, lora={"targets": ["qkv"]}), layout).transformer
    most = min(student.blocks[0].attention.qkv.weight.shape)
    build_student(lora_config(base, lora={"targets": ["qkv"], "rank": most}), layout)
    with pytest.raises(LoraError, match=rf"rank={most + 1} is more than any .* has {most}; use at most that"):
        build_student(lora_config(base, lora={"targets": ["qkv"], "rank": most + 1}), layout)


@pytest.mark.parametrize("scale", [math.nan, math.inf])
def test_a_scale_that_is_no_number_is_refused_and_changes_nothing(trained, pipe, layout, scale):
    before = output_of(pipe.model, layout)
    with pytest.raises(LoraError, match=f"LoRA scale {scale}: give a number"):
        pipe.load_lora(trained[1], scale=scale)
    assert torch.equal(output_of(pipe.model, layout), before)


def test_targets_are_parts_of_names_and_one_that_names_nothing_is_told(base, layout):
    student = build_student(lora_config(base, lora={"targets": ["qkv", "video_out"]}), layout)
    adapted = {n.partition(".lora_")[0] for n, p in student.transformer.named_parameters() if p.requires_grad}
    assert adapted == {*(f"blocks.{i}.attention.qkv" for i in range(3)), "video_out"}
    with pytest.raises(LoraError, match=r"no linear layer is named mlp; there are .*blocks.attention.qkv"):
        build_student(lora_config(base, lora={"targets": ["mlp"]}), layout)


def test_a_lora_of_nothing_is_refused_before_anything_starts():
    with pytest.raises(ConfigError, match=r"--set train.init: train.lora adapts|train.init='' names none"):
        load_config(None, ["train.lora.rank=8"])
    assert load_config(None, ["train.lora.rank=8", "train.init=bounce"]).train.lora is not None


def test_without_peft_the_extra_is_named(base, layout, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(
        LoraError, match=r"LoRA needs peft, which is not installed; pip install 'worldmodel\[lora"
    ):
        begin_lora(open_model(tiny_config(), layout), lora_config(base))
    assert lora_module.folder_hash(base)


def test_adapted_blocks_compile_in_one_graph(base, layout):
    transformer = build_student(lora_config(base), layout).transformer
    linear = transformer.blocks[0].attention.qkv  # pyright: ignore
    x_LD = torch.randn(5, 32)
    compiled = torch.compile(linear, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x_LD), linear(x_LD))
