"""A run that begins from another model takes what fits, names what does not, and changes nothing by depth."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.worldmodel.synthetic import make_batch, open_gates, tiny_config, tiny_layout
from worldmodel.config import RunConfig
from worldmodel.draw import draw
from worldmodel.export import save_model
from worldmodel.flow import homogeneous_levels
from worldmodel.layout import Layout
from worldmodel.model.transformer import WorldTransformer
from worldmodel.randomness import SampleRandom
from worldmodel.train.engine import PlainEngine, build_student
from worldmodel.train.warm_start import NothingFits, compare, warm_start


@pytest.fixture
def saved(tmp_path: Path, cfg: RunConfig, layout: Layout) -> tuple[Path, WorldTransformer]:
    """An exported model with open gates."""
    model = build_student(cfg, layout).transformer
    open_gates(model)
    save_model(tmp_path / "old", model.state_dict(), layout, cfg, {})
    return tmp_path / "old", model


def output_of(model: WorldTransformer, layout: Layout) -> torch.Tensor:
    batch = make_batch(layout)
    levels = homogeneous_levels(layout, 4, 0.5)
    one = draw(batch, layout, tiny_config().objective, SampleRandom(0, 0, (0, 1, 2, 3)), levels)
    tokens, _, _ = one.tokens_at(levels.student_BK)
    with torch.no_grad():
        return model(tokens, levels.student_BK, levels.level_of_BL, layout=layout)["video"]


def shapes(model: WorldTransformer) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def test_engine_and_average_begin_from_the_weights_of_train_init(saved, layout):
    folder, old = saved
    engine = PlainEngine(tiny_config(train={"init": str(folder)}), layout)
    for name, weight in old.named_parameters():
        assert torch.equal(engine.master[f"transformer.{name}"], weight)
        assert torch.equal(engine.ema[f"transformer.{name}"], weight)
    assert torch.equal(output_of(engine.teacher, layout), output_of(old, layout))


def test_a_deeper_model_begins_as_the_one_it_came_from(saved, layout):
    folder, old = saved
    cfg = tiny_config(model={"depth": 5})
    deeper = build_student(cfg, layout).transformer
    fit = warm_start(deeper, folder)
    assert torch.equal(output_of(deeper, layout), output_of(old, layout))
    assert fit.share < 1
    assert [line for line in fit.lines() if "begins anew" in line] == [
        "blocks.3: not in that model: begins anew",
        "blocks.4: not in that model: begins anew",
    ]


def test_longer_clips_and_larger_pictures_take_everything(saved, cfg, layout):
    folder, old = saved
    longer = tiny_layout(tiny_config(data={"clip_s": 1.0, "size": [64, 32]}))
    model = WorldTransformer(cfg.model, longer)
    fit = warm_start(model, folder)
    assert (fit.share, fit.fresh, fit.differing, fit.unused) == (1, [], {}, [])
    assert torch.equal(output_of(model, layout), output_of(old, layout))


def test_layers_that_do_not_fit_are_named(saved, layout):
    folder, _ = saved
    cfg = tiny_config(model={"mlp_ratio": 2.0, "depth": 2, "action_dim": 3})
    fit = compare(folder, shapes(WorldTransformer(cfg.model, tiny_layout(cfg))))
    said = fit.lines()
    assert "blocks.0.feed_forward.video.0.weight: saved [128, 32], needs [64, 32]: begins anew" in said
    assert "action_in.weight: saved [32, 8], needs [32, 12]: begins anew" in said
    assert "blocks.2: not in this model: left out" in said


def test_another_width_or_a_damaged_file_is_told(saved, layout):
    folder, _ = saved
    cfg = tiny_config(model={"width": 64})
    with pytest.raises(NothingFits, match="no block of it fits: width 32 against 64"):
        compare(folder, shapes(WorldTransformer(cfg.model, layout)))
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(NothingFits, match="damaged or cut short"):
        compare(folder, {})
    with pytest.raises(ValueError, match="not an exported model"):
        build_student(tiny_config(train={"init": "nowhere"}), layout)
