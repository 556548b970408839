"""`worldmodel generate` as it is typed."""

from __future__ import annotations

import json

import pytest

from tests.ray_jobs.test_cli_errors import complaint, worldmodel
from worldmodel.pipeline import WorldModelPipeline

pytestmark = pytest.mark.slow  # each command imports torch

PROMPT = "a red steel ball"


def test_the_command_makes_the_clip_that_python_makes(tmp_path):
    done = worldmodel(
        *("generate", "bounce", "--prompt", PROMPT, "--seed", 3, "--frames", 8, "--out", tmp_path / "a.mp4"),
        "--json",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    ours = WorldModelPipeline.from_pretrained("bounce")(PROMPT, seed=3, num_frames=8)
    assert (found["sha256"], found["seed"], found["frames"]) == (ours.sha256, 3, 8)
    ours.save(tmp_path / "b.mp4")
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_explain_says_how_a_prompt_is_read_and_makes_nothing(tmp_path):
    done = worldmodel("generate", "bounce", "--prompt", PROMPT, "--explain", "--json", cwd=tmp_path)
    found = json.loads(done.stdout)
    assert found["caption"] == {"text": PROMPT, "bytes": 16, "of": 112}
    assert found["speech"] == {"text": "", "bytes": 0, "of": 0}
    assert not list(tmp_path.iterdir())


def test_mistakes_get_one_line(tmp_path):
    def lines(*arguments: object) -> list[str]:
        return complaint("generate", "bounce", *map(str, arguments), cwd=tmp_path)

    assert "does not speak" in lines("--prompt", 'a man says "hi"')[0]
    assert "the prompt is empty" in lines("--prompt", " ")[0]
    assert "use clip.mp4" in lines("--prompt", PROMPT, "--out", "clip.avi")[0]
    assert "nowhere.mp4" in lines("--prompt", PROMPT, "--video", "nowhere.mp4")[0]
    assert "shipped: bounce" in complaint("generate", "opera", "--prompt", PROMPT)[0]
