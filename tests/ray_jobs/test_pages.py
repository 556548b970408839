"""Commands and snippets of the pages that users read, as they stand, made small."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ray_jobs.bench import known_benchmarks
from ray_jobs.runtime_env import ROOT
from tests.ray_jobs.filter_clips import melody, moving, write
from tests.ray_jobs.test_cli_errors import worldmodel

pytestmark = [pytest.mark.slow, pytest.mark.ray]

PAGES = ("README.md", "docs/researchers.md", "docs/environments.md", "docs/simulators.md")
SMALL = {  # the pages' own sizes would take an hour here
    "generate": ("--frames", "8"),
    "check-prompts": ("--clips", "2"),
    "env": ("--steps", "2"),
    "render": ("--clips", "2"),
    "rollout": ("--seconds", "0.5", "--steps", "1", "--actors", "1"),
    "check": (),
    "collect": ("--episodes", "2", "--seconds", "1", "--actors", "1"),
    "export-lerobot": (),
    "train": ("--dry-run",),
    "kuberay": (),
}
ELSEWHERE = {  # by commands that a test of their own runs
    "serve": "test_studio.py",
    "demo": "test_demo_pretrained.py",
    "doctor": "test_infrastructure_page.py",
    "submit": "test_infrastructure_page.py",
    "tokenizer": "test_tokenizer_train.py",
    "label": "test_labels_models.py",
    "s3:": "test_sources_remote.py",
}
STANDS_FOR = {"CONFIG": str(ROOT / "configs" / "debug_cpu.yaml"), "RUN": "pusher", "IMAGE": "worldmodel:1"}


def commands(page: str) -> list[list[str]]:
    """Lines of the page's shell blocks that call worldmodel, without comments and redirections. Those that
    name a user's own FOLDER or MEDIA have tests of their own: test_real_clips, test_pretrained_training."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```", (ROOT / page).read_text("utf-8"), re.DOTALL | re.MULTILINE)
    blocks = [block.replace("\\\n", " ") for language, block in fences if language in ("", "sh")]
    lines = [line for block in blocks for line in block.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines if re.match(r"\S*worldmodel ", line)]
    words = [each[: each.index(">")] if ">" in each else each for each in words]
    return [each[1:] for each in words if not re.search("FOLDER|MEDIA", " ".join(each))]


@pytest.mark.parametrize("page", PAGES)
def test_each_command_of_a_page_runs(page, tmp_path):
    ran = 0
    for words in commands(page):
        kind = words[0]
        if kind in ELSEWHERE:
            assert (Path(__file__).parent / ELSEWHERE[kind]).exists()
            continue
        if kind == "bench":
            assert words[1] in known_benchmarks()
            continue
        asked = [STANDS_FOR.get(word, word) for word in words]
        asked = [str(ROOT / word) if word.startswith("configs/") else word for word in asked]
        extra = [] if words[-1] == "--dry-run" else SMALL[kind]
        done = worldmodel(*asked, *extra, cwd=tmp_path)
        assert done.returncode == 0, (words, done.stderr[-2000:])
        ran += 1
    assert ran >= 3


def test_each_command_of_the_page_of_data_runs(tmp_path):
    (tmp_path / "clips").mkdir()
    for number in range(3):
        write(tmp_path / "clips" / f"{number}.mp4", moving(number, 25), melody(number, 1.0))
    (tmp_path / "more.csv").write_text("video,caption\nclips/2.mp4,blobs drift\n")
    ran = []
    for words in commands("docs/data.md"):
        if words[0] in ELSEWHERE:
            continue
        if words[0] == "forget":
            (tmp_path / "runs").mkdir()
            (tmp_path / "ids.txt").write_text(f"{tmp_path}/clips/0.mp4\n")
        done = worldmodel(*(word for word in words if not word.startswith("s3:")), cwd=tmp_path)
        assert done.returncode == 0, (words, done.stderr[-2000:])
        ran.append(" ".join(words[:2] if words[0] == "data" else words[:1]))
    assert ran == ["index", "index", "data table", "data stats", "forget"]
    assert (tmp_path / "data.html").stat().st_size > 10_000


@pytest.mark.parametrize("page", ["README.md", "docs/researchers.md", "docs/environments.md"])
def test_each_snippet_of_a_page_runs(page, tmp_path):
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text("utf-8"), re.DOTALL)
    assert snippets
    for snippet in snippets:
        done = subprocess.run(
            [sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (snippet, done.stderr[-2000:])
