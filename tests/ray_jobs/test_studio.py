"""The page as a user meets it: `worldmodel serve` in a process of its own, a headless browser in front."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.ray_jobs.api_client import Client
from worldmodel.model_folder import shipped_models
from worldmodel.pipeline import WorldModelPipeline

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine"),
]

REPO = Path(__file__).parents[2]
MODELS = {"bounce": ("a red steel ball", ""), "talker": ("a man says", "bin blue at f two now")}
MODEL = os.environ.get("WORLDMODEL_STUDIO_MODEL", "bounce")
STEPS = 2
PATIENCE_S = 60.0
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
SOUND = """async () => {
    const blob = await (await fetch(document.getElementById("video").src)).blob();
    const sound = await new OfflineAudioContext(1, 1, 16000).decodeAudioData(await blob.arrayBuffer());
    const samples = sound.getChannelData(0);
    return Math.sqrt(samples.reduce((sum, x) => sum + x * x, 0) / samples.length);
}"""
COLOURS = """() => {
    const canvas = document.getElementById("wave");
    const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    return new Set(new Uint32Array(data.buffer)).size;
}"""


@pytest.fixture(scope="module")
def served() -> Iterator[dict[str, str]]:
    """What `worldmodel serve --json` prints. Ctrl-C must end it with exit 0, and its clips."""
    assert MODEL in shipped_models(), f"WORLDMODEL_STUDIO_MODEL={MODEL} is not shipped"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    paths = os.pathsep.join(str(folder) for folder in (REPO, REPO / "tokenizers"))
    process = subprocess.Popen(
        [sys.executable, "-m", "ray_jobs.cli", "serve", MODEL, "--port", str(port), "--json"],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        pytest.fail(process.communicate()[1][-2000:])
    try:
        yield json.loads(line)
    finally:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said[-2000:]
    assert "Traceback" not in said


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        )
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(
    browser: playwright.Browser, served: dict[str, str], **options: object
) -> Iterator[playwright.Page]:
    """The page, entered with its token. Fails for a request elsewhere or an error in the console."""
    page = browser.new_page(**options)
    asked: list[str] = []
    wrong: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.goto(served["page"])
    page.locator("#studio").wait_for()
    yield page
    page.close()
    assert asked
    here = (served["url"] + "/", f"blob:{served['url']}/", "data:")
    assert [url for url in asked if not url.startswith(here)] == []
    assert not [url for url in asked if served["token"] in url]
    assert [words for words in wrong if "422" not in words] == []


def make(page: playwright.Page, *, seed: int | str = "") -> None:
    caption, speech = MODELS[MODEL]
    page.fill("#prompt", caption)
    if speech:
        page.fill("#speech", speech)
    if not page.locator("#settings[open]").count():
        page.click("#settings summary")
    page.fill("#seed", str(seed))
    page.fill("#steps", str(STEPS))


def until(page: playwright.Page, expression: str) -> None:
    """Waits for it to be true. playwright's own way evaluates text in the page, which the page forbids."""
    ends_at = time.monotonic() + PATIENCE_S
    while not page.evaluate(expression):
        assert time.monotonic() < ends_at, f"{expression} did not come true"
        page.wait_for_timeout(50)


def clip_is_shown(page: playwright.Page, seed: int) -> None:
    until(page, f"document.getElementById('about-facts').textContent.includes('seed {seed},')")


def test_a_prompt_becomes_the_clip_that_python_makes_and_it_plays(served, browser):
    torch.set_num_threads(1)  # sums of several threads end in other digits
    with opened(browser, served, viewport=WIDE) as page:
        make(page, seed=3)
        page.click("#make")
        clip_is_shown(page, 3)
        until(page, "document.getElementById('video').currentTime > 0.2")
        assert page.evaluate("document.getElementById('video').videoWidth") == 64
        caption, speech = MODELS[MODEL]
        ours = WorldModelPipeline.from_pretrained(MODEL)(
            f'{caption} "{speech}"' if speech else caption, seed=3, num_inference_steps=STEPS
        )
        assert f"sha256 {ours.sha256[:12]}…" in page.locator("#about-facts").inner_text()
        # AAC, and resampling to the browser's own, change little of it
        loudness = float(np.sqrt(np.mean(np.square(ours.audio))))
        assert page.evaluate(SOUND) == pytest.approx(loudness, rel=0.15, abs=1e-3)
        assert page.evaluate(COLOURS) >= 3  # ground, played and ahead
        assert page.locator("#clips canvas").count() == 1
        with page.expect_download() as download:
            page.click("#download")
        assert download.value.suggested_filename == f"{MODEL}_3.mp4"


def test_keys_again_and_variations_make_clips_of_other_seeds(served, browser):
    with opened(browser, served, viewport=WIDE) as page:
        page.locator("#clips li").first.wait_for()  # of the earlier visit
        before = page.locator("#clips li").count()
        make(page, seed=5)
        page.press("#prompt", "Control+Enter")
        clip_is_shown(page, 5)
        page.click("#again")
        until(
            page,
            f"document.querySelectorAll('#clips li').length === {before + 2}"
            " && !document.getElementById('about-facts').textContent.includes('seed 5,')",
        )
        page.click("#variations")
        until(
            page,
            "() => { const said = [...document.querySelectorAll('#clips .words span')]"
            ".map((s) => s.innerText)"
            f"; return said.length === {before + 6} && said.every((s) => s.startsWith('seed '))"
            f"&& new Set(said).size === {before + 6} }}",
        )


def test_an_error_is_said_in_the_servers_words_where_it_belongs(served, browser):
    with opened(browser, served, viewport=NARROW) as page:
        page.fill("#prompt", "a red ball " * 20)
        page.click("#make")
        page.locator("#prompt-error", has_text="and this model reads").wait_for()
        assert page.get_attribute("#prompt", "aria-invalid") == "true"
        page.fill("#prompt", MODELS[MODEL][0])
        page.click("#begin summary")
        page.set_input_files(
            "#input_image", {"name": "a.png", "mimeType": "image/png", "buffer": b"not a picture"}
        )
        page.click("#make")
        page.locator("#media-error", has_text="a.png: 13 bytes that are no picture").wait_for()
        assert page.locator("#prompt-error").inner_text() == ""
        assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]


def test_without_the_token_the_page_asks_for_it(served, browser):
    page = browser.new_page()
    page.goto(served["url"])
    page.fill("#token", "wrong-token")
    page.keyboard.press("Enter")
    page.locator("#door-error", has_text="not the token").wait_for()
    page.fill("#token", served["token"])
    page.keyboard.press("Enter")
    page.locator("#studio").wait_for()
    page.close()


def test_everything_that_is_asked_for_has_a_name(served, browser):
    with opened(browser, served) as page:
        unnamed = page.evaluate(
            "[...document.querySelectorAll('input, textarea, progress')].filter((e) => !e.labels?.length"
            " && !e.getAttribute('aria-label')).map((e) => e.id)"
        )
        assert unnamed == []
        spoken = (
            Client(served["url"], served["token"]).ask("GET", "/v1/models").json["data"][0]["speech_bytes"]
        )
        assert page.locator("#speech").is_visible() == bool(spoken)
