"""Configs as people write them: every problem at once, where it is, what was given and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.worldmodel.synthetic import tiny_config
from worldmodel.config import RunConfig
from worldmodel.load_config import ConfigError, config_difference, dump_config, load_config

CONFIGS = sorted(
    path for path in (Path(__file__).parents[2] / "configs").rglob("*.yaml") if path.parent.name != "codecs"
)


@pytest.fixture
def problems(tmp_path: Path):
    """problems(text, *overrides): the lines that a user would read, the folder cut off."""

    def read(text: str, *overrides: str) -> list[str]:
        path = tmp_path / "a.yaml"
        path.write_text(text)
        with pytest.raises(ConfigError) as caught:
            load_config(path, list(overrides))
        return [line.replace(f"{tmp_path}/", "") for line in caught.value.problems]

    return read


CASES = {
    "model:\n  widht: 3\n": "a.yaml:2: unknown key model.widht; did you mean width?",
    "objective:\n  noise:\n    teid: 1\n": "a.yaml:3: unknown key objective.noise.teid; did you mean tied?",
    "model:\n  width: 1000\n  head_dim: 64\n": "a.yaml:2: model.width=1000 is not a multiple of "
    "model.head_dim=64; nearest: 960 or 1024",
    "model:\n  head_dim: 20\n  width: 200\n": "a.yaml:2: model.head_dim=20 must be a multiple of 8: rotary "
    "pairs for time, height and width",
    "model:\n  patch: [1, 2, 3]\n": "a.yaml:2: model.patch must be a list of 2, got [1, 2, 3]",
    "model:\n  patch: [1]\n": "a.yaml:2: model.patch must be a list of 2, got [1]",
    "data:\n  mixture: clips\n": "a.yaml:2: data.mixture must be a list, such as [a, b], got 'clips'",
    "data:\n  targets: [{name: dino}]\n": "a.yaml:2: data.targets.encoder must be given, "
    "got {'name': 'dino'}",
    "data:\n  targets: [{name: dino, encoder: x, modelity: audio}]\n": "a.yaml:2: unknown key "
    "data.targets.modelity; did you mean modality?",
    "data:\n  filters:\n    drop: [statik]\n": "a.yaml:3: data.filters.drop[0] must be one "
    "of 'static', 'black', 'silent', 'duplicate', got 'statik'",
    "train:\n  lora:\n    targets: []\n": "a.yaml:3: train.lora.targets must be a list of "
    "at least one, got []",
    "objective:\n  rep: none\n  teacher_shuffled: true\n": "a.yaml:3: objective.teacher_shuffled=true is of "
    "a teacher, and with objective.rep=none there is none; use objective.rep=ema",
    "data:\n  batch_clips: 1\nobjective:\n  teacher_shuffled: true\n": "a.yaml:4: "
    "objective.teacher_shuffled=true takes another clip of the micro-batch, and with data.batch_clips=1 "
    "there may be none; set data.batch_clips to 2 or more alone",
    "model:\n  depth: 2\nobjective:\n  rep: layersync\n": "a.yaml:4: objective.rep=layersync: layer 1 "
    "(objective.student_layer=0.3 of model.depth=2) would follow layer 1 (teacher_layer=0.7), which is no "
    "later one; use a deeper model or layers further apart",
    "data:\n  size: [64, a]\n": "a.yaml:2: data.size[1] must be a whole number, got 'a'",
    "train:\n  precision: bf8\n": "a.yaml:2: train.precision must be one of 'bf16', 'fp32', got 'bf8'",
    "train:\n  steps: 1.5\n": "a.yaml:2: train.steps must be a whole number, got 1.5",
    "optim:\n  lr: fast\n": "a.yaml:2: optim.lr must be a number, got 'fast'",
    "optim:\n  lr: 0\n": "a.yaml:2: optim.lr must be above 0.0, got 0",
    "objective:\n  mask_ratio_audio: 0.6\n": "a.yaml:2: "
    "objective.mask_ratio_audio must be at most 0.5, got 0.6",
    "objective:\n  dual: maybe\n": "a.yaml:2: objective.dual must be true or false, got 'maybe'",
    "train: 3\n": "a.yaml:1: train must be a mapping of keys, got 3",
    "model:\n": "a.yaml:1: model must be a mapping of keys, got nothing",
    "name: ../up\n": "a.yaml:1: name must match ^[A-Za-z0-9][A-Za-z0-9._-]*$, got '../up'",
    "seed: 1\n\nseed: 2\n": "a.yaml:3: seed is written twice, first at a.yaml:1; keep one",
    "data:\n  clip_s: 0.3\n": "a.yaml:2: data.clip_s=0.3 is not a multiple of the chunk of 0.25 s "
    "(model.chunk_frames / data.fps); nearest: 0.25",
    "data:\n  clip_s: 20\n": "a.yaml:2: data.clip_s=20.0 is 80 chunks, but model.window_chunks + "
    "model.sink_chunks is 9; use at most 2.25 s",
    "rollout:\n  prefix_s: 0.1\n": "a.yaml:2: rollout.prefix_s=0.1 is shorter than one chunk of 0.25 s",
    "objective:\n  noise:\n    history_rows: 0.9\n": "a.yaml:3: objective.noise.history_rows=0.9 and "
    "objective.noise.independent_rows=0.3 add up to more than 1",
    "train:\n  keep_best: true\n  evaluate_clips: 0\n": "a.yaml:2: train.keep_best=true keeps the commit of "
    "lowest held-out error, and train.evaluate_clips=0 measures none; set evaluate_clips to 1 or more",
    "train:\n  steps: 500\n  keep_best: true\n": "a.yaml:3: train.keep_best=true chooses among commits at "
    "evaluated steps, and with train.evaluate_every=250 and train.checkpoint_every=100 there is none before "
    "the last of 500 steps; set train.evaluate_every=100",
    "train:\n  steps: 100\n  keep_best: true\n": "a.yaml:3: train.keep_best=true chooses among commits at "
    "evaluated steps, and with train.evaluate_every=250 and train.checkpoint_every=100 there is none before "
    "the last of 100 steps; set checkpoint_every below 100, and evaluate_every to the same",
    "data:\n  held_out: 0\ntrain:\n  steps: 501\n  keep_best: true\n": "a.yaml:5: train.keep_best=true keeps "
    "the commit of lowest held-out error, and data.held_out=0 holds nothing out; set data.held_out=0.1",
    "objective:\n  video_weight: 0\n  image_weight: 0\n  audio_weight: 0\n": "a.yaml:2: "
    "objective.video_weight=0, objective.image_weight=0, objective.audio_weight=0: nothing would be learned; "
    "set one above 0",
    "objective:\n  sound_alone: 1\n  audio_weight: 0\n": "a.yaml:3: objective.audio_weight=0: nothing would "
    "be learned; set one above 0",
    "objective:\n  rep: repa\n  picture_alone: 1\ndata:\n  targets:\n  - {name: ear, encoder: E, modality: "
    "audio}\n": "a.yaml:2: objective.rep=repa follows encoders of audio (data.targets), but only video is "
    "trained; name one of modality video",
    "data:\n  targets: [{name: a, encoder: x}, {name: a, encoder: y}]\n": "a.yaml:2: "
    "data.targets=[a, a]: a stands there twice; give each encoder a name of its own",
    "data:\n  buckets: [{clip_s: 2}]\n": "a.yaml:2: data.buckets.size must be given, a list of 2, got "
    "{'clip_s': 2}",
    "data:\n  size: [64, 0]\n": "a.yaml:2: data.size[1] must be at least 1, got 0",
    "data:\n  buckets: [{clip_s: 2, size: [-64, 64]}]\n": "a.yaml:2: data.buckets.size[0][0] must be at "
    "least 1, got -64",
    "model:\n  patch: [0, 2]\n": "a.yaml:2: model.patch[0] must be at least 1, got 0",
    "optim:\n  lr: .inf\n": "a.yaml:2: optim.lr must be a finite number, got inf",
    "optim:\n  betas: [0.9, 1]\n": "a.yaml:2: optim.betas[1] must be below 1.0, got 1",
    "data:\n  clip_s: .inf\n": "a.yaml:2: data.clip_s must be a finite number, got inf",
    "train:\n  steps: yes\n": "a.yaml:2: train.steps must be a whole number, got True",
    "optim:\n  betas: [on, 0.9]\n": "a.yaml:2: optim.betas must be a number, got [True, 0.9]",
    "data:\n  batch_tokens: on\n": "a.yaml:2: data.batch_tokens must be a whole number, got True",
    "name: off\n": "a.yaml:1: name must be text, got False; YAML reads it so without quotes",
    "- 1\n": "a.yaml:1: a config is a mapping of keys, got list",
}


@pytest.mark.parametrize("text", CASES)
def test_a_problem_is_one_line_with_file_and_line(problems, text):
    assert problems(text) == [CASES[text]]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("model.widht=3", "--set model.widht: unknown key model.widht; did you mean width?"),
        ("codec.video=3", "--set codec.video: codec.video must be"),
        ("optim.lr=-1", "--set optim.lr: optim.lr must be"),
        ("train.steps", "--set train.steps: needs the form key=value"),
        ("train.steps=[", "--set train.steps: '[' is not YAML"),
        ("model.depth.x=3", "--set model.depth.x: model.depth must be a whole number, got {'x': 3}"),
        ("model.width=1000", "--set model.width: model.width=1000 is not a multiple of model.head_dim=32; "
         "nearest: 992 or 1024"),
        ("zzz=1", "--set zzz: unknown key zzz; known here: name, storage, seed"),
    ],
)  # fmt: skip
def test_a_problem_of_set_names_the_option(problems, override, line):
    (found,) = problems("seed: 1\nmodel:\n  width: 64\n  head_dim: 32\n", override)
    assert found.startswith(line)


def test_every_problem_is_listed_at_once(problems):
    text = "name: a b\nmodel:\n  widht: 3\n  depth: x\ntrian:\n  steps: 2\ndata:\n  fps: 0\n"
    assert problems(text, "optim.lr=-1", "nonsense") == [
        "--set nonsense: needs the form key=value",
        "a.yaml:3: unknown key model.widht; did you mean width?",
        "a.yaml:5: unknown key trian; did you mean train?",
        "a.yaml:1: name must match ^[A-Za-z0-9][A-Za-z0-9._-]*$, got 'a b'",
        "a.yaml:8: data.fps must be above 0, got 0",
        "a.yaml:4: model.depth must be a whole number, got 'x'",
        "--set optim.lr: optim.lr must be above 0.0, got -1",
    ]


def test_text_that_is_no_yaml_gives_the_line(problems):
    assert problems("seed: 1\nmodel: {\n")[0].startswith("a.yaml:3: not YAML: ")


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(ConfigError, match=r"gone.yaml: cannot be read: No such file"):
        load_config(tmp_path / "gone.yaml")


def test_overrides_win_in_order_and_keep_their_type(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("optim:\n  lr: 1e-4\ndata:\n  size: [32, 32]\n")
    cfg = load_config(
        path, ["optim.lr=1e-3", "optim.lr=5e-3", "data.size=[16, 48]", "data.manifest=", "name=b"]
    )
    assert (cfg.optim.lr, cfg.data.size, cfg.data.manifest, cfg.name) == (5e-3, (16, 48), "", "b")
    assert load_config(None) == RunConfig()


def test_a_dumped_config_loads_as_itself(tmp_path):
    cfg = tiny_config(objective={"dual": False, "noise": {"tied": 0.25}}, name="x.y")
    path = tmp_path / "a.yaml"
    path.write_text(dump_config(cfg))
    assert load_config(path) == cfg


def test_the_difference_of_two_configs_names_each_setting():
    other = tiny_config(optim={"lr": 0.1}, data={"size": [48, 32]})
    assert config_difference(tiny_config(), other) == [
        "data.size: [32, 32] -> [48, 32]",
        "optim.lr: 0.003 -> 0.1",
    ]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_every_shipped_config_loads_and_its_header_says_what_it_takes(path):
    assert isinstance(load_config(path), RunConfig)
    header = path.read_text().split("\nname:")[0]
    assert header.startswith("# ")
    assert "Hardware:" in header
    assert "Duration:" in header


def test_configs_are_there():
    assert "demo.yaml" in [p.name for p in CONFIGS]
