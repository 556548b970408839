"""What the command line says to mistakes: one clear line on standard error, exit 2, no traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from avtok.mux import write_clip
from ray_jobs.errors import UserError
from ray_jobs.run_folder import RunFolder
from worldmodel.load_config import load_config
from worldmodel.worlds.bounce import BounceSettings, simulate

REPO = Path(__file__).parents[2]
SUBCOMMANDS = (
    "demo",
    "render",
    "index",
    "tokenize",
    "train",
    "rollout",
    "check",
    "export",
    "generate",
    "serve",
    "check-prompts",
    "env",
    "collect",
    "export-lerobot",
    "kuberay",
    "submit",
    "doctor",
    "bench",
    "data stats",
    "data table",
    "tokenizer train",
    "tokenizer eval",
)
HEAVY = ("ray", "torch", "deepspeed", "av", "pyarrow")


def worldmodel(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(str(folder) for folder in (REPO, REPO / "tokenizers"))
    return subprocess.run(
        [sys.executable, "-m", "ray_jobs.cli", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "COLUMNS": "120"},
        capture_output=True,
        text=True,
        check=False,
    )


def complaint(*arguments: str | Path, cwd: Path | None = None) -> list[str]:
    """The lines on standard error of a command that must end with exit 2 and print nothing else."""
    done = worldmodel(*arguments, cwd=cwd)
    assert "Traceback" not in done.stderr, done.stderr
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    return done.stderr.splitlines()


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two_clips")
    for seed in range(2):
        episode = simulate(BounceSettings(), seed=seed, duration_s=1.0)
        path = folder / f"{seed}.mp4"
        write_clip(path, episode.video_THWC, episode.audio_N, fps=16, sample_rate=16000)
    return folder


@pytest.fixture
def config(tmp_path: Path, clips: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(
        f"name: taken\nstorage: {tmp_path / 'runs'}\n"
        f"data:\n  manifest: {clips}\n  clip_s: 1.0\n"
        "model:\n  width: 64\n  head_dim: 32\n"
        "rollout:\n  prefix_s: 0.5\n",
        "utf-8",
    )
    return path


def test_a_missing_config_is_one_line(tmp_path):
    missing = tmp_path / "nope.yaml"
    assert complaint("train", missing) == [f"{missing}: cannot be read: No such file or directory"]


def test_codecs_of_the_other_modality_are_named_alone(config):
    swapped = ("--set", "codec.audio=patchconv-4x8x8-48", "--set", "codec.video=spectral-32")
    assert complaint("train", config, *swapped, "--dry-run") == [
        "codec.video: spectral-32 is a codec of audio; give one of video",
        "codec.audio: patchconv-4x8x8-48 is a codec of video; give one of audio",
    ]


def test_every_mistake_in_settings_is_named_at_once_with_its_place_and_a_way_out(config):
    config.write_text(config.read_text() + "  clisp: 3\n", "utf-8")
    lines = complaint("train", config, "--set", "model.widht=96", "--set", "model.width=1000")
    assert sorted(lines) == sorted(
        [
            f"{config}:11: unknown key rollout.clisp; did you mean clips?",
            "--set model.widht: unknown key model.widht; did you mean width?",
            "--set model.width: model.width=1000 is not a multiple of model.head_dim=32; "
            "nearest: 992 or 1024",
        ]
    )


def test_rates_that_a_codec_cannot_take_are_refused_before_ray_starts(config):
    (line,) = complaint("train", config, "--set", "data.sample_rate=8000")
    assert "8000" in line
    assert "16000" in line


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda at: None, "no such file or folder"),
        (lambda at: at.mkdir(), "the folder is empty; put media in it"),
        (
            lambda at: (at.mkdir(), (at / "notes.txt").write_text("hello")),
            "no media among 1 files (.txt x 1)",
        ),
    ],
    ids=["missing", "empty folder", "folder of text files"],
)
def test_a_source_without_media_ends_train_and_index_alike_and_does_not_take_the_name(
    tmp_path, config, make, says
):
    source = tmp_path / "source"
    make(source)
    (line,) = complaint("train", config, "--set", f"data.manifest={source}")
    assert line.startswith(f"{source}: ")
    assert says in line
    assert complaint("index", source, "--out", tmp_path / "m.parquet") == [line]
    assert not (tmp_path / "runs").exists()


def test_a_manifest_without_a_media_column_names_the_columns_it_has_and_those_it_may_have(tmp_path, config):
    manifest = tmp_path / "clips.csv"
    manifest.write_text("film,caption\na.mp4,a ball\n", "utf-8")
    (line,) = complaint("train", config, "--set", f"data.manifest={manifest}")
    assert line == (
        f"{manifest}: no column names the media; it has film, caption; "
        "use one of video, video_path, media_path, path, uri"
    )


def test_a_name_taken_by_another_config_is_refused_with_the_difference(config):
    cfg = load_config(config)
    folder = RunFolder(cfg)
    folder.make()
    folder.claim(cfg, "worldmodel train run.yaml")
    (line,) = complaint("train", config, "--set", "model.depth=3", "--set", "train.workers=1")
    assert line.startswith(
        f"{folder.path}: this name is taken by a run with another config (model.depth: 6 -> 3);"
    )
    assert "--set name=" in line


def test_a_model_to_compare_with_is_missed_before_training_and_not_after(config):
    (line,) = complaint("train", config, "--set", "rollout.beside=[nowhere]")
    assert line.startswith("rollout.beside: nowhere: not an exported model (no such folder or run; shipped: ")


def test_a_model_to_begin_from_is_missed_before_anything_starts(config):
    (line,) = complaint("train", config, "--set", "train.init=nowhere")
    assert line.startswith("train.init: nowhere: not an exported model (no such folder or run; shipped: ")
    (line,) = complaint("train", config, "--set", "train.init=bounce", "--set", "model.width=96")
    assert "no block of it fits: width 192 against 96; begin from a model of the same width" in line


def test_a_storage_that_cannot_be_written_is_one_line(tmp_path, config):
    (tmp_path / "file").write_text("no folder")
    cfg = load_config(config, [f"storage={tmp_path / 'file'}"])
    with pytest.raises(UserError, match=r"cannot be written: Not a directory; set storage") as error:
        RunFolder(cfg).make()
    assert error.value.exit_code == 2


@pytest.mark.slow  # some of these import torch
def test_commands_that_are_given_something_that_is_not_there_say_so(tmp_path):
    model = tmp_path / "model"
    (line,) = complaint("rollout", model, "--prompts", tmp_path, "--out", tmp_path / "out")
    assert line.startswith(f"{model}: not an exported model (no such folder or run; shipped: ")
    (line,) = complaint(
        "rollout", "bounce", "--prompts", tmp_path, "--out", tmp_path / "out", "--seconds", "0"
    )
    assert line == "seconds=0.0: Input should be greater than 0"
    (line,) = complaint("check", tmp_path)
    assert (
        line == f"{tmp_path / 'rollouts.json'}: does not exist; give a folder that `worldmodel rollout` wrote"
    )
    (line,) = complaint("export", tmp_path, "--out", tmp_path / "out")
    assert line == (
        f"{tmp_path}: is no run: it has no config.yaml; give the folder of a run, or its name in runs/"
    )
    run = tmp_path / "runs" / "mine"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("name: mine\n")
    (line,) = complaint("export", "mine", "--out", "out", cwd=tmp_path)
    assert line == "runs/mine: nothing was committed, so there is nothing to export"
    (line,) = complaint("export", "mine", "--out", run / "config.yaml", cwd=tmp_path)
    assert line == f"--out {run / 'config.yaml'}: is a file; give a folder"
    film, episode = tmp_path / "film.mp4", simulate(BounceSettings(), seed=0, duration_s=0.25)
    write_clip(film, episode.video_THWC, episode.audio_N, fps=16, sample_rate=16000)
    (line,) = complaint("train", film, "--dry-run")
    assert line.startswith(f"{film}: no text in UTF-8 (byte ")
    (line,) = complaint("data", "stats", tmp_path / "m.parquet")
    assert line.startswith(f"{tmp_path / 'm.parquet'}: no such manifest; make one with: worldmodel index")


@pytest.mark.slow  # some of these import torch
def test_an_unknown_world_is_refused_with_the_known_ones_before_ray_starts(tmp_path):
    (line,) = complaint("render", "bonce_one", "--out", tmp_path / "clips")
    assert "'bonce_one'" in line
    assert "bounce_one" in line
    assert complaint("demo", "--world", "bonce_one", "--out", tmp_path / "run") == [line]
    assert not (tmp_path / "run").exists()


def test_json_output_is_one_object_and_a_broken_file_is_in_it_with_its_reason(tmp_path, clips):
    source = tmp_path / "clips.jsonl"
    (tmp_path / "broken.mp4").write_bytes(b"no film" * 99)
    rows = [{"video": str(clips / "0.mp4")}, {"video": "broken.mp4"}]
    source.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    done = worldmodel("index", source, "--out", tmp_path / "m.parquet", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["kept"] == 1
    ((uri, reason),) = [(row["uri"], row["reason"]) for row in found["quarantined"]]
    assert uri == str(tmp_path / "broken.mp4")
    assert reason
    stats = worldmodel("data", "stats", tmp_path / "m.parquet", "--json")
    facts = json.loads(stats.stdout)
    assert (facts["clips"], facts["with_sound"], facts["quarantined"]) == (1, 1, 1)


def test_help_of_every_command_is_there_without_an_import_that_costs_seconds():
    script = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from ray_jobs.cli import app\n"
        f"for command in ({[''.join(c) for c in ('', *SUBCOMMANDS)]!r}):\n"
        "    done = CliRunner().invoke(app, [*command.split(), '--help'])\n"
        "    assert done.exit_code == 0, (command, done.output)\n"
        "    assert 'Usage' in done.output, command\n"
        f"print(*(name for name in {HEAVY!r} if name in sys.modules))\n"
    )
    paths = os.pathsep.join(str(folder) for folder in (REPO, REPO / "tokenizers"))
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_help_goes_to_standard_output_where_a_pager_finds_it():
    done = worldmodel("data", "stats", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage" in done.stdout
