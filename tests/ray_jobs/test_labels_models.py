"""Folders of models: the right kind is found, anything else is one clear error before a cluster starts."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ray_jobs.cli import app
from ray_jobs.errors import UserError
from ray_jobs.labels.loading import load_model
from ray_jobs.labels.models import find_models
from tests.ray_jobs.label_models import save_blip, save_wav2vec2, save_whisper
from worldmodel.config import LabelConfig

pytest.importorskip("transformers", reason="needs the extra worldmodel[pretrained]")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    made = {"blip": save_blip, "whisper": save_whisper, "wav2vec2": save_wav2vec2}
    return {name: save(root / name) for name, save in made.items()}


def test_models_are_found_by_their_class_and_named_by_what_is_in_the_folder(folders):
    found = find_models(LabelConfig(captioner=str(folders["blip"]), recognizer=str(folders["whisper"])))
    assert found.captioner is not None
    assert found.recognizer is not None
    assert (found.captioner.kind, found.recognizer.kind, found.aligner) == ("captioner", "seq2seq", None)
    assert found.captioner.by.startswith("blip:")


def test_a_ctc_recogniser_is_its_own_aligner(folders):
    found = find_models(LabelConfig(recognizer=str(folders["wav2vec2"])))
    assert found.aligner == found.recognizer


def test_other_weights_under_the_same_name_are_another_model(tmp_path):
    folder = save_wav2vec2(tmp_path / "model")
    cfg = LabelConfig(aligner=str(folder))
    before = find_models(cfg).aligner
    assert find_models(cfg).aligner == before
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    after = find_models(cfg).aligner
    assert before is not None
    assert after is not None
    assert before.by != after.by


@pytest.mark.parametrize(
    ("role", "given", "says"),
    [
        ("captioner", "whisper", "WhisperForConditionalGeneration is a speech recogniser"),
        ("recognizer", "blip", "BlipForConditionalGeneration is an image-to-text model"),
        (
            "aligner",
            "whisper",
            "WhisperForConditionalGeneration is a speech recogniser; give the folder of a",
        ),
        ("captioner", "nowhere", "config.json: no such file"),
    ],
)
def test_a_folder_of_another_kind_is_one_line_that_names_both(folders, role, given, says):
    path = str(folders.get(given, given))
    with pytest.raises(UserError, match="transformers") as raised:
        find_models(LabelConfig(**{role: path}))
    (line,) = raised.value.lines
    assert line.startswith(f"{role} {path}: ")
    assert says in line


def test_every_folder_that_is_wrong_is_named_at_once(tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{oops")
    given = LabelConfig(captioner=str(tmp_path / "gone"), aligner=str(tmp_path / "broken"))
    with pytest.raises(UserError) as raised:
        find_models(given)
    assert [line.partition(" ")[0] for line in raised.value.lines] == ["captioner", "aligner"]
    assert "not readable" in raised.value.lines[1]


def test_a_base_model_without_its_head_is_refused(tmp_path):
    folder = save_wav2vec2(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["Wav2Vec2Model"]}))
    with pytest.raises(UserError, match="Wav2Vec2Model is no model that labels are made with"):
        find_models(LabelConfig(aligner=str(folder)))


def test_weights_that_lack_tensors_are_refused_and_not_made_up(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = save_wav2vec2(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    found = find_models(LabelConfig(aligner=str(folder))).aligner
    assert found is not None
    with pytest.raises(UserError, match=r"lack 1 tensors, such as lm_head\.weight"):
        load_model(found, "AutoModelForCTC", gpu=False)


def test_weights_that_do_not_load_are_one_line(tmp_path):
    folder = save_wav2vec2(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"no weights")
    found = find_models(LabelConfig(aligner=str(folder))).aligner
    assert found is not None
    with pytest.raises(UserError, match="does not load") as raised:
        load_model(found, "AutoModelForCTC", gpu=False)
    assert len(raised.value.lines) == 1
    assert "\n" not in raised.value.lines[0]


@pytest.mark.parametrize(
    ("module", "given", "extra"),
    [("transformers.models.auto", {"captioner": "blip"}, "pretrained"), ("pocketsphinx", {}, "speech")],
)
def test_a_missing_extra_is_named(monkeypatch, folders, module, given, extra):
    monkeypatch.setitem(sys.modules, module, None)  # what an absent package looks like
    cfg = {role: str(folders[name]) for role, name in given.items()} or {"recognizer": "pocketsphinx"}
    with pytest.raises(UserError, match=rf"not installed; pip install 'worldmodel\[{extra}\]'"):
        find_models(LabelConfig(**cfg))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "nothing to label with"),
        (["--captioner", "nowhere"], "config.json: no such file"),
        (["--recognizer", "pocketsphinx", "--min-confidence", "2"], "between 0 and 1"),
    ],
)
def test_the_command_refuses_before_a_cluster_starts(tmp_path, options, says):
    result = CliRunner().invoke(app, ["label", "m.parquet", "--out", str(tmp_path / "m.parquet"), *options])
    assert isinstance(result.exception, UserError)
    assert says in str(result.exception)
