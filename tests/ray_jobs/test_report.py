"""checks.json and report.html from a run folder with real clips; missing pieces are words, not crashes."""

from __future__ import annotations

import base64
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from avtok.mux import write_clip
from ray_jobs.check import check_rollouts
from ray_jobs.errors import UserError
from ray_jobs.report import write_report
from ray_jobs.report_checks import verdict
from worldmodel.checks.position import LOST_ERROR
from worldmodel.worlds.bounce import BounceSettings, simulate, write_truth

NUM_CLIPS, FPS, RATE = 6, 16, 16000


class Page(HTMLParser):
    """Tags and attributes, and whether every opened element is closed."""

    VOID = frozenset({"meta", "img", "br", "hr", "link", "path", "use", "rect"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    """A run whose rollouts are frozen pictures with the true sound, cut at 0.5 s into 2.5 s clips."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "rollouts").mkdir()
    rows, truths = [], []
    for index in range(NUM_CLIPS):
        episode = simulate(BounceSettings(), seed=index, duration_s=2.5)
        truths.append(replace(episode.truth, clip=f"clip_{index:03d}.mp4"))
        video_THWC, audio_N = episode.video_THWC[8:], episode.audio_N[RATE // 2 :]
        frozen_THWC = np.concatenate([video_THWC[:16], np.repeat(video_THWC[15:16], 16, axis=0)])
        files = {"truth": f"{index}_truth.mp4", "rollout": f"{index}_rollout.mp4"}
        write_clip(folder / "rollouts" / files["truth"], video_THWC, audio_N, fps=FPS, sample_rate=RATE)
        write_clip(folder / "rollouts" / files["rollout"], frozen_THWC, audio_N, fps=FPS, sample_rate=RATE)
        row = {
            "sample_id": index,
            "seed": 1,
            "caption": episode.truth.caption,
            **files,
            "prefix_s": 1.0,
            "seconds": 1.0,
        }
        rows.append({**row, "source": f"/data/clip_{index:03d}.mp4", "start_s": 0.5})
    (folder / "rollouts" / "rollouts.json").write_text(json.dumps(rows))
    write_truth(folder / "truth.parquet", truths)
    constant = {
        "align_video": 0.5,
        "align_audio": 0.4,
        "grad_norm": 1.0,
        "tokens_per_s": 2e3,
        "stall_fraction": 0.02,
    }
    losses = ("loss", "loss_video", "loss_audio")
    steps = [{"step": step, **dict.fromkeys(losses, 1 / (step + 1)), **constant} for step in range(40)]
    rows = [*steps, {"step": 40, "eval_video": 0.3, "eval_audio": 0.2}]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"step": 4')
    quarantined = [{"sample_id": 7, "uri": "broken <7>.mp4", "reason": "no picture & no sound"}]
    accounting = {
        "planned": 100,
        "consumed": 90,
        "quarantined": quarantined,
        "remaining": 9,
        "epochs": [{"epoch": 0}],
    }
    (folder / "accounting.json").write_text(json.dumps(accounting))
    (folder / "run.json").write_text(
        json.dumps({"name": "demo", "command": "worldmodel demo", "versions": {"torch": "2"}})
    )
    (folder / "config.yaml").write_text("name: demo\n")
    check_rollouts(folder / "rollouts", truth=str(folder / "truth.parquet"), out=folder / "checks.json")
    return folder


def test_checks_read_from_files_know_the_cut_and_the_frozen_picture(run_dir):
    result = json.loads((run_dir / "checks.json").read_text())
    near = result["checks"]["position_error"]
    assert 64 * near["floor"] < 0.15  # a wrong cut or a wrong pairing would be pixels off
    assert result["position_error_025s_over_frozen"] == pytest.approx(1, abs=0.05)
    assert result["checks"]["freeze"]["value"] > 0.9
    assert result["checks"]["onset_f1"]["score"] == 1
    assert result["sample_ids"] == list(range(NUM_CLIPS))


def test_report_asks_nothing_of_the_network_and_is_well_formed(run_dir):
    html = write_report(run_dir).read_text("utf-8")
    page = Page(html)
    assert page.open == []
    assert "http:" not in html
    assert "https:" not in html
    addresses = [a[key] for _, a in page.tags for key in ("src", "href", "xlink:href") if a.get(key)]
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert not re.search(r"url\((?!#)", html)


def test_report_holds_the_clips_themselves(run_dir):
    page = Page(write_report(run_dir, show=2).read_text("utf-8"))
    videos = page.all("video")
    assert len(videos) == 4
    data = base64.b64decode(videos[0]["src"].removeprefix("data:video/mp4;base64,"))
    assert data == (run_dir / "rollouts" / "0_rollout.mp4").read_bytes()
    assert all("controls" in video for video in videos)


def test_every_picture_has_words_and_the_prefix_is_marked_where_it_ends(run_dir):
    html = write_report(run_dir, show=1).read_text("utf-8")
    page = Page(html)
    assert len(page.all("img")) == 4
    assert all(image["alt"] for image in page.all("img"))
    assert all(svg["aria-label"] for svg in page.all("svg"))
    assert '<span class="cut" style="left:50.00%">' in html


def test_report_says_what_was_quarantined_and_that_the_plan_adds_up(run_dir):
    html = write_report(run_dir, show=0).read_text("utf-8")
    assert "100 planned = 90 consumed + 1 quarantined + 9 remaining" in html
    assert "does not add up" not in html
    assert "broken &lt;7&gt;.mp4" in html
    assert "no picture &amp; no sound" in html


def test_report_shows_curves_checks_and_facts(run_dir):
    html = write_report(run_dir, show=0).read_text("utf-8")
    for words in (
        *("Flow loss, video", "Flow loss, audio", "Self-Flow alignment", "Throughput", "Waiting for data"),
        *("held out, EMA", "Position error against horizon", "tracker on truth", "versions.torch"),
        *("worldmodel demo", "1 lines of metrics.jsonl could not be read"),
    ):
        assert words in html, words
    assert "stand still" in html  # the verdict sees that the rollouts are frozen


def test_a_run_with_nothing_in_it_still_reports(tmp_path):
    html = write_report(tmp_path).read_text("utf-8")
    assert Page(html).open == []
    missing = ("metrics.jsonl is not in the run folder", "accounting.json is not", "No run.json")
    for words in ("No checks were run", "No continued clips", *missing):
        assert words in html, words


def test_a_clip_that_cannot_be_decoded_is_listed_with_its_reason(run_dir, tmp_path):
    shutil.copytree(run_dir / "rollouts", tmp_path / "rollouts")
    (tmp_path / "rollouts" / "2_rollout.mp4").write_bytes(b"not a clip")
    result = check_rollouts(
        tmp_path / "rollouts", truth=str(run_dir / "truth.parquet"), out=tmp_path / "checks.json"
    )
    assert [row["sample_id"] for row in result["unusable"]] == [2]
    assert result["sample_ids"] == [0, 1, 3, 4, 5]
    html = write_report(tmp_path, show=3).read_text("utf-8")
    assert "cannot be shown" in html
    assert "Not checked" in html


def test_without_truth_only_what_needs_none_is_checked(run_dir, tmp_path):
    result = check_rollouts(run_dir / "rollouts", out=tmp_path / "checks.json")
    assert "skipped" in result["checks"]["position_error"]
    assert result["checks"]["freeze"]["value"] > 0.9


def test_what_cannot_be_checked_is_one_clear_line(run_dir, tmp_path):
    with pytest.raises(UserError, match="does not exist; give a folder"):
        check_rollouts(tmp_path, out=tmp_path / "checks.json")
    with pytest.raises(UserError, match="--truth"):
        check_rollouts(run_dir / "rollouts", truth=str(tmp_path / "no.parquet"), out=tmp_path / "checks.json")
    other = simulate(BounceSettings(), seed=0, duration_s=0.5).truth
    write_truth(tmp_path / "other.parquet", [replace(other, clip="other.mp4")])
    with pytest.raises(UserError, match="holds no clip"):
        check_rollouts(
            run_dir / "rollouts", truth=str(tmp_path / "other.parquet"), out=tmp_path / "checks.json"
        )


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        ((0.03, 0.05), "40% of the error"),
        ((0.05, 0.2), "cannot be told from"),
        ((0.2, 0.3), "worse than a frozen"),
    ],
)
def test_the_verdict_claims_no_more_than_the_interval_allows(interval, words):
    check = {
        "value": 0.04,
        "ci_low": interval[0],
        "ci_high": interval[1],
        "at_s": 0.25,
        "baselines": {"frozen_frame": 0.1},
    }
    assert words in verdict({"checks": {"position_error": check}, "position_error_025s_over_frozen": 0.4})


def test_a_body_that_is_lost_is_not_said_to_be_far():
    lost = dict.fromkeys(("value", "ci_low", "ci_high"), LOST_ERROR)
    check = lost | {"at_s": 0.25, "baselines": {"frozen_frame": 0.1}}
    said = verdict({"checks": {"position_error": check}, "position_error_025s_over_frozen": 14.1})
    assert "not to be found in most clips" in said


def test_clips_of_sound_alone_are_checked_and_shown(tmp_path):
    episode = simulate(BounceSettings(), seed=0, duration_s=2.0)
    for name in ("truth", "rollout"):
        write_clip(tmp_path / f"{name}.mp4", None, episode.audio_N, fps=FPS, sample_rate=RATE)
    row = {"sample_id": 0, "truth": "truth.mp4", "rollout": "rollout.mp4", "prefix_s": 1.0}
    (tmp_path / "rollouts").mkdir()
    for name in ("truth.mp4", "rollout.mp4"):
        shutil.move(tmp_path / name, tmp_path / "rollouts" / name)
    (tmp_path / "rollouts" / "rollouts.json").write_text(json.dumps([row]))
    checks = check_rollouts(tmp_path / "rollouts", out=tmp_path / "checks.json")["checks"]
    assert "skipped" in checks["freeze"]
    assert checks["loudness_drift"]["value"] == checks["loudness_drift"]["floor"]
    assert len(Page(write_report(tmp_path).read_text("utf-8")).all("img")) == 2


def test_what_looked_wrong_in_training_is_said_once_and_as_text(tmp_path):
    (tmp_path / "warnings.txt").write_text("step 700: the loss of audio <is> where it began\n" * 2)
    page = write_report(tmp_path).read_text("utf-8")
    assert page.count("the loss of audio &lt;is&gt; where it began") == 1
