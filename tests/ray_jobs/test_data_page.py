"""The page of a data set: complete in itself, escaped, and true to the manifest."""

from __future__ import annotations

import base64
import html
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ray_jobs.data_figures import bars, histogram, strip_jpeg, waveform
from ray_jobs.data_page import write_data_page
from ray_jobs.data_sheet import chosen_rows, facts_line
from ray_jobs.index import index_sources
from tests.ray_jobs.filter_clips import melody, moving, write

EVIL = '<script>alert("x")</script> & "quoted"'


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    """Three clips, one of them gone since it was indexed, two left out."""
    folder = tmp_path_factory.mktemp("data")
    write(folder / "a.mp4", moving(1, 50), melody(1, 2.0))
    write(folder / "b.mkv", None, melody(2, 3.0))
    write(folder / "gone.mp4", moving(3, 25), None)
    (folder / "broken.mp4").write_bytes(b"no film" * 99)
    (folder / "empty.mp4").write_bytes(b"")
    rows = [
        {"path": name, "caption": EVIL} for name in ("a.mp4", "b.mkv", "gone.mp4", "broken.mp4", "empty.mp4")
    ]
    rows[0]["speech"] = [{"start": 0.5, "text": "hello there"}]
    (folder / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    index_sources([str(folder / "m.jsonl")], out=str(folder / "m.parquet"))
    (folder / "gone.mp4").unlink()
    seen = []
    path = write_data_page(
        str(folder / "m.parquet"),
        folder / "out" / "page.html",
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]
    return path.read_text("utf-8")


def test_the_page_asks_nothing_of_the_network(page):
    for address in re.findall(r'(?:src|href|url)\s*=?\s*[("\']([^"\')]+)', page):
        assert address.startswith(("data:", "#")), address[:80]
    assert "<script" not in page


def test_words_of_the_data_are_escaped(page):
    assert EVIL not in page
    assert page.count(html.escape(EVIL)) == 3


def test_tags_are_closed_in_order(page):
    class Nesting(HTMLParser):
        open_tags: list[str] = []  # noqa: RUF012 (one page)

        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "img", "br", "path", "polygon", "use", "rect"):
                self.open_tags.append(tag)

        def handle_endtag(self, tag):
            if self.open_tags and self.open_tags[-1] == tag:
                self.open_tags.pop()
            else:
                assert tag in ("path", "polygon", "use", "rect"), (tag, self.open_tags)

    nesting = Nesting()
    nesting.feed(page)
    assert nesting.open_tags == []


def test_the_sheet_shows_eight_frames_and_the_sound_of_each_clip(page):
    strips = re.findall(r'<img src="data:image/jpeg;base64,([^"]+)" alt="8 frames of (\S+)"', page)
    assert [name for _, name in strips] == ["a.mp4"]
    strip = np.asarray(Image.open(io.BytesIO(base64.b64decode(strips[0][0]))).convert("RGB")).astype(int)
    width = (strip.shape[1] + 3) // 8
    assert (strip.shape[0], width) == (84, 115)
    first = np.asarray(Image.fromarray(moving(1, 1)[0]).resize((112, 84))).astype(int)
    assert np.abs(strip[:, : width - 3] - first).mean() < 12
    assert page.count('<svg class="wave"') == 2
    assert "[0.5 s] hello there" in page
    assert re.search(r"gone\.mp4.{0,400}Cannot be shown: [^<]*No such file", page, re.DOTALL)


def test_what_was_left_out_is_there_with_its_reason(page):
    assert "it is empty" in page
    assert "Not media, or encrypted" in page
    assert "2 rows, 40.0% of what was given" in page
    assert "3 clips, 6 s, 5 s with sound" in page


def test_a_waveform_is_as_high_where_it_is_loudest_and_flat_where_it_is_silent():
    audio_N = np.zeros(8000, np.float32)
    audio_N[4000:6000] = 0.2 * np.sin(np.arange(2000) * 0.5)
    points = re.search(r'points="([^"]+)"', waveform(audio_N, alt="a", points=100))[1].split()
    height = np.array([[float(n) for n in point.split(",")] for point in points])
    top = {x: 50 - y for x, y in height[:100]}
    assert max(top.values()) == pytest.approx(48.6, abs=0.5)
    assert all(value < 1 for x, value in top.items() if not 480 < x < 770)
    assert "points" in waveform(np.zeros(10, np.float32), alt="b")


def test_histograms_say_nothing_of_nothing_and_stand_for_one_value():
    assert histogram(np.array([]), x_label="s", alt="a") == ""
    assert histogram(np.array([np.nan, -1.0]), x_label="s", alt="a", log_x=True) == ""
    assert histogram(np.array([2.0]), x_label="seconds", alt='an "alt"', log_x=True).count("<svg") == 1
    assert "a &lt;b&gt;" in bars({"a <b>": 3})
    assert "2 others" in bars({str(i): 1 for i in range(10)}, most=8)


def test_clips_are_spread_over_the_manifest():
    assert chosen_rows(100, 4) == [12, 37, 62, 87]
    assert chosen_rows(2, 24) == [0, 1]
    assert chosen_rows(0, 24) == []
    strip = strip_jpeg(np.zeros((2, 8, 8, 3), np.uint8))
    assert Image.open(io.BytesIO(base64.b64decode(strip.partition(",")[2]))).size == (19, 8)


def test_facts_of_a_clip_are_one_line(manifest):
    from ray_jobs.manifest_table import read_manifest

    rows = {Path(row["uri"]).name: row for row in read_manifest(str(manifest)).to_pylist()}
    line = facts_line(rows["bounce_0.mp4"])
    assert re.fullmatch(r"2\.00 s · 64x64 at 16 frames/s, h264 · aac 16 kHz x 1(, -[\d.]+ LUFS)?", line), line
    assert facts_line(rows["no_sound.mp4"]).endswith("no sound")
    assert facts_line(rows["no_picture.mp4"]).startswith("2.")
