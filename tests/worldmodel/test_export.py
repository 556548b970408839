"""An exported folder is the model again, or says why it is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.worldmodel.synthetic import make_batch, tiny_config
from worldmodel.config import SelfFlowConfig
from worldmodel.draw import draw
from worldmodel.export import NotAModel, load_model, save_model
from worldmodel.flow import homogeneous_levels
from worldmodel.model_folder import INDEX_FILE, WEIGHTS
from worldmodel.randomness import SampleRandom


@pytest.fixture
def folder(tmp_path: Path, model, layout, cfg) -> Path:
    save_model(tmp_path / "export", model.state_dict(), layout, cfg, {"steps": 7})
    return tmp_path / "export"


def test_a_loaded_model_gives_the_same_output(folder, model, layout, cfg):
    loaded, run, prediction = load_model(folder)
    assert (run, prediction) == (cfg, "x")
    assert loaded.layout == layout
    assert not loaded.training
    one = draw(
        make_batch(layout),
        layout,
        SelfFlowConfig(),
        SampleRandom(0, 0, (0, 1, 2, 3)),
        homogeneous_levels(layout, 4, 0.4),
    )
    tokens, _, _ = one.tokens_at(one.levels.student_BK)
    ours, theirs = (m(tokens, one.levels.student_BK, one.levels.level_of_BL) for m in (model, loaded))
    assert ours["video"].abs().max() > 0
    assert torch.equal(ours["video"], theirs["video"])
    assert torch.equal(ours["audio"], theirs["audio"])


def test_the_folder_has_the_shape_of_a_hugging_face_pipeline(folder, model):
    index = json.loads((folder / INDEX_FILE).read_text())
    assert index["_class_name"] == "WorldModelPipeline"
    assert index["transformer"] == ["worldmodel", "WorldTransformer"]
    assert (
        json.loads((folder / "transformer" / "config.json").read_text())["_class_name"] == "WorldTransformer"
    )
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: worldmodel")
    assert "| steps | 7 |" in card


def test_a_folder_without_an_index_is_no_model(tmp_path):
    with pytest.raises(NotAModel, match=r"no model_index.json here; give an exported folder"):
        load_model(tmp_path)


def test_missing_and_damaged_files_are_named(folder):
    weights = folder / "transformer" / WEIGHTS
    content = weights.read_bytes()
    weights.write_bytes(content[:-100])
    with pytest.raises(NotAModel, match=r"diffusion_pytorch_model.safetensors: damaged or cut short"):
        load_model(folder)
    weights.unlink()
    with pytest.raises(NotAModel, match=r"diffusion_pytorch_model.safetensors: missing"):
        load_model(folder)
    (folder / "transformer" / "config.json").unlink()
    with pytest.raises(NotAModel, match=r"config.json: missing"):
        load_model(folder)
    (folder / INDEX_FILE).write_text("{")
    with pytest.raises(NotAModel, match=r"model_index.json: not JSON"):
        load_model(folder)


def test_weights_of_another_model_are_named(folder):
    path = folder / "transformer" / WEIGHTS
    weights = load_file(str(path))
    weights["video_in.bias"] = torch.zeros(7)
    del weights["audio_in.bias"]
    save_file(weights, str(path))
    with pytest.raises(
        NotAModel, match=r"2 tensors differ .* first audio_in.bias: saved None, needs \(32,\)"
    ):
        load_model(folder)


def test_a_folder_of_another_version_is_named(folder):
    config = json.loads((folder / "transformer" / "config.json").read_text())
    del config["layout"]["patch"]
    (folder / "transformer" / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        NotAModel, match=r"written by another version \(no key 'patch'\); export the run again"
    ):
        load_model(folder)
    index = json.loads((folder / INDEX_FILE).read_text())
    index["run"]["model"]["gone"] = 1
    (folder / INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(NotAModel, match="written by another version"):
        load_model(folder)


def test_prediction_is_kept(tmp_path, model, layout):
    cfg = tiny_config(objective={"prediction": "v"})
    save_model(tmp_path, model.state_dict(), layout, cfg, {})
    assert load_model(tmp_path)[2] == "v"
