"""`worldmodel check-prompts` as it is typed."""

from __future__ import annotations

import json

import pytest

from tests.ray_jobs.test_cli_errors import complaint, worldmodel

pytestmark = pytest.mark.slow  # each command imports torch


def test_each_factor_stands_beside_chance_and_codec(tmp_path):
    done = worldmodel("check-prompts", "bounce", "--clips", 4, "--out", tmp_path / "new" / "checks.json")
    assert done.returncode == 0, done.stderr
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == [
        *("colour", "count", "material", "direction")
    ]
    assert all("codec alone" in line and "chance" in line for line in done.stdout.splitlines())
    found = json.loads((tmp_path / "new" / "checks.json").read_text())
    assert (found["world"], found["episodes"]) == ("bounce", 4)
    assert found["checks"]["prompt_following"]["factors"]["colour"]["codec"] == 1


def test_mistakes_get_one_line():
    assert "does not speak" in complaint("check-prompts", "bounce", "--world", "talker")[0]
    assert "prompts of bounce and talker" in complaint("check-prompts", "bounce", "--world", "opera")[0]
    assert "make at least 2" in complaint("check-prompts", "bounce", "--clips", "1")[0]
    assert "shipped: bounce" in complaint("check-prompts", "opera")[0]
