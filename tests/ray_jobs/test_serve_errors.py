"""What the API says to mistakes, over HTTP and with the shipped model, in this process and without Ray."""

from __future__ import annotations

import asyncio
import io
import socket
import threading
import time
import wave
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from PIL import Image

from avtok.mux import write_clip
from ray_jobs import serve_body, serve_jobs
from ray_jobs.errors import UserError
from ray_jobs.models import find_model
from ray_jobs.serve import check_port
from ray_jobs.serve_api import build_app
from ray_jobs.serve_body import Upload
from ray_jobs.serve_facts import ModelFacts, fitting
from ray_jobs.serve_jobs import Jobs, ReplicaLost
from ray_jobs.serve_model import ModelReplica
from ray_jobs.serve_problems import Problem
from ray_jobs.serve_request import Asked, read_request
from tests.ray_jobs.api_client import TOKEN, Answer, Client
from tests.ray_jobs.test_cli_errors import complaint
from worldmodel.session import RolloutSessions

PROMPT = "a red steel ball"
SHORT = {"prompt": PROMPT, "seed": 3, "num_frames": 8, "steps": 1}
KEEP = 6


class Losing:
    """The replica; of the clips with a steps-value of 7, the first `losses` tries end with its process."""

    def __init__(self) -> None:
        self.replica, self.losses = ModelReplica("bounce", "bounce"), 0
        self.tries = 0

    async def make(self, asked: Asked) -> AsyncIterator[dict[str, Any]]:
        if asked.steps == 7:
            self.tries += 1
            yield {"done": 1, "total": 2}
            if self.tries <= self.losses:
                raise ReplicaLost
        if asked.steps == 8:
            raise ZeroDivisionError("a mistake of ours")
        async for event in self.replica.make(asked):
            yield event


@pytest.fixture(scope="module")
def losing() -> Losing:
    return Losing()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def client(losing: Losing, folder: Path) -> Iterator[Client]:
    facts = ModelFacts.read(find_model("bounce"), "bounce")
    app = build_app(Jobs(losing.make, folder=folder, keep=KEEP, at_once=1), facts, token=TOKEN)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
    yield Client(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}")
    server.should_exit = True
    thread.join()


def check(answer: Answer, status: int, kind: str, words: str) -> None:
    assert answer.status == status, answer.content
    assert answer.headers["content-type"] == "application/problem+json"
    found = answer.json
    assert (found["type"], found["status"]) == (f"urn:worldmodel:{kind}", status)
    assert found.keys() == {"type", "title", "status", "detail"}
    assert words in found["detail"]
    assert "/tmp" not in found["detail"]


@pytest.fixture(autouse=True)
def _stays_up(client: Client) -> Iterator[None]:
    yield
    assert client.ask("GET", "/healthz", Authorization="").json == {"status": "ok", "model": "bounce"}


@pytest.mark.parametrize(
    ("fields", "status", "kind", "words"),
    [
        ({}, 422, "prompt", "the prompt is empty"),
        ({"prompt": "  "}, 422, "prompt", "the prompt is empty"),
        ({"prompt": 7}, 422, "prompt", "prompt is text, got 7"),
        ({"prompt": 'a man says "hi'}, 422, "prompt", "opens or closes speech"),
        ({"prompt": 'a man says "hi"'}, 422, "prompt", "does not speak"),
        ({"prompt": PROMPT, "voice": "en-us+f1"}, 422, "ability", "does not speak; leave it out"),
        ({"prompt": PROMPT, "speech_guidance": 2}, 422, "ability", "does not speak"),
        ({"prompt": PROMPT, "size": "720x1280"}, 422, "size", "makes 64x64; use that"),
        ({"prompt": PROMPT, "num_frames": 7}, 422, "value", "use 8"),
        ({"prompt": PROMPT, "seconds": "1.1"}, 422, "value", "seconds=1.1"),
        ({"prompt": PROMPT, "seconds": "1.1"}, 422, "value", "in steps of 0.25; use 1"),
        ({"prompt": PROMPT, "seconds": 1e9}, 422, "value", "use 0 to 60"),
        ({"prompt": PROMPT, "seconds": 1, "num_frames": 16}, 422, "value", "give one of them"),
        ({"prompt": PROMPT, "seed": -1}, 422, "value", "seed=-1"),
        ({"prompt": PROMPT, "seed": 1.5}, 422, "value", "seed is a whole number, got 1.5"),
        ({"prompt": PROMPT, "seed": True}, 422, "value", "seed is a whole number"),
        ({"prompt": PROMPT, "steps": 0}, 422, "value", "steps=0: use 1"),
        ({"prompt": PROMPT, "guidance": "nan"}, 422, "value", "guidance is a number, got 'nan'"),
        ({"prompt": PROMPT, "input_image": "x"}, 422, "media", "send it in a multipart form"),
        ({"promt": PROMPT}, 422, "key", "unknown key 'promt'; did you mean prompt?"),
        ({"prompt": PROMPT, "model": "opera"}, 404, "not-found", "'opera' is not served here; bounce is"),
    ],
)
def test_what_the_model_cannot_make_is_refused_in_words(client, fields, status, kind, words):
    check(client.wait(fields), status, kind, words)


def test_a_prompt_that_is_too_long_says_by_how_much(client):
    room = ModelFacts.read(find_model("bounce"), "bounce").cfg.model.text_tokens
    check(client.wait({"prompt": "x" * (room + 5)}), 422, "prompt", "leave out 5")


def test_what_is_no_request_is_refused(client, monkeypatch):
    check(client.ask("POST", "/v1/videos", b"{prompt"), 400, "body", "is not JSON")
    check(client.ask("POST", "/v1/videos", b"\xff\xfe"), 400, "body", "is not JSON")
    check(client.ask("POST", "/v1/videos", b'["a"]'), 400, "body", "is no object")
    check(client.ask("POST", "/v1/videos", b"a", Content_Type="text/plain"), 415, "body", "text/plain")
    broken = {"Content_Type": "multipart/form-data; boundary=b"}
    check(client.ask("POST", "/v1/videos", b"--b\r\nno end", **broken), 400, "body", "no end")
    check(client.ask("PUT", "/v1/videos", b""), 405, "body", "Method Not Allowed")
    check(client.ask("GET", "/v2"), 404, "not-found", "GET /v2")
    check(client.ask("GET", "/v1/videos?limit=0"), 422, "value", "limit=0: use 1 to 100")
    monkeypatch.setattr(serve_body, "MAX_BODY_BYTES", 1 << 20)
    large = client.form({"prompt": PROMPT}, {"input_video": ("a.mp4", bytes(2 << 20))})
    check(large, 413, "too-large", "more than 1 MiB")
    unsaid = client.ask("POST", "/v1/videos", iter([bytes(1 << 19)] * 3))
    check(unsaid, 413, "too-large", "more than 1 MiB")


def test_every_address_of_the_api_asks_for_the_token(client):
    for method, path in (
        ("GET", "/v1/models"),
        ("GET", "/v1/videos"),
        ("POST", "/v1/videos"),
        ("GET", "/v1/videos/a"),
        ("GET", "/v1/videos/a/content"),
        ("DELETE", "/v1/videos/a"),
    ):
        answer = client.ask(method, path, Authorization="")
        check(answer, 401, "token", "no token is given")
        assert answer.headers["www-authenticate"] == "Bearer"
    for wrong in ("Bearer nope", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer é"):
        check(client.ask("GET", "/v1/models", Authorization=wrong), 401, "token", "not the token")


def test_unknown_clips_are_not_found(client):
    for method, path in (("GET", "video_0"), ("GET", "video_0/content"), ("DELETE", "video_0")):
        check(client.ask(method, f"/v1/videos/{path}"), 404, "not-found", "'video_0'")
    check(client.ask("GET", "/v1/videos/..%2f..%2fetc%2fpasswd/content"), 404, "not-found", "")


def picture() -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((48, 48, 3), 200, np.uint8)).save(out, "PNG")
    return out.getvalue()


def film(folder: Path, frames: int | None, samples: int | None) -> bytes:
    video = None if frames is None else np.full((frames, 64, 64, 3), 90, np.uint8)
    noise = np.random.default_rng(0).standard_normal(samples or 1).astype(np.float32)
    audio = None if samples is None else 0.1 * noise
    write_clip(folder / "film.mp4", video, audio, fps=16, sample_rate=16000)
    return (folder / "film.mp4").read_bytes()


def test_files_that_cannot_be_used_are_named(client, tmp_path):
    def answer(wait: bool = False, **files: tuple[str, bytes]) -> Answer:
        fields = {k: str(v) for k, v in SHORT.items()}
        return client.form(fields, files, Prefer="wait" if wait else "")

    png, clip, sound = picture(), film(tmp_path, 16, 16000), film(tmp_path, None, 16000)
    check(answer(input_image=("a.png", b"hello")), 422, "media", "a.png: 5 bytes that are no picture")
    check(answer(input_image=("a.png", png[:60])), 422, "media", "a.png")
    check(answer(input_video=("c.mp4", clip[:200])), 422, "media", "c.mp4")
    check(answer(input_video=("s.mp4", sound)), 422, "media", "s.mp4: holds no picture")
    check(answer(input_audio=("a.png", png)), 422, "media", "a.png: holds no sound")
    both = answer(input_image=("a.png", png), input_reference=("c.mp4", clip))
    check(both, 422, "media", "give one of them")
    twice = answer(input_image=("a.png", png), input_reference=("b.png", png))
    check(twice, 422, "media", "the image is given twice")
    playlist = b"#EXTM3U\n#EXTINF:1,\n/etc/hostname\n"
    check(answer(input_video=("a.m3u8", playlist)), 422, "media", "are no picture, clip or sound")
    # only the model's process knows that the sound is too short for the clip, and says so in the same words
    check(answer(True, input_audio=("s.mp4", film(tmp_path, None, 3000))), 422, "value", "audio s.mp4: 0.")


def test_pictures_clips_and_sounds_are_taken(client, tmp_path):
    fields = {**{k: str(v) for k, v in SHORT.items()}, "wait": "true"}
    given = {
        "input_image": ("a.png", picture()),
        "input_video": ("c.mp4", film(tmp_path, 4, 4000)),
        "input_audio": ("s.mp4", film(tmp_path, None, 16000)),
    }
    plain = client.wait(SHORT).json["sha256"]
    found = {}
    for name, file in given.items():
        answer = client.form(fields, {name: file})
        assert answer.status == 200, answer.content
        assert answer.json["inputs"] == [name.removeprefix("input_")]
        found[name] = answer.json["sha256"]
    assert len({plain, *found.values()}) == 4
    for name in ("input_image", "input_video"):
        assert client.form(fields, {"input_reference": given[name]}).json["sha256"] == found[name]


def test_a_clip_can_be_read_in_parts_and_only_when_it_is_made(client):
    name = client.post(SHORT).json["id"]
    early = client.ask("GET", f"/v1/videos/{name}/content")
    if early.status != 200:  # else it was made already
        check(early, 409, "not-ready", "ask again later")
    client.follow(name)
    whole = client.ask("GET", f"/v1/videos/{name}/content")
    part = client.ask("GET", f"/v1/videos/{name}/content", Range="bytes=4-11")
    assert (whole.status, whole.headers["content-type"]) == (200, "video/mp4")
    assert (part.status, part.content) == (206, whole.content[4:12])
    assert part.headers["content-range"] == f"bytes 4-11/{len(whole.content)}"


def test_a_lost_process_costs_one_try_and_two_fail_the_clip_in_words(client, losing):
    for losses, expected in ((0, "completed"), (1, "completed"), (2, "failed")):
        losing.losses, losing.tries = losses, 0
        last = client.follow(client.post({**SHORT, "steps": 7}).json["id"])[-1]
        assert (last["status"], losing.tries) == (expected, min(losses + 1, 2))
    assert last["error"] == {
        "code": "lost",
        "message": "the model's process ended 2 times while it made the clip",
    }
    check(client.ask("GET", f"/v1/videos/{last['id']}/content"), 500, "server", "ended 2 times")
    check(client.wait({**SHORT, "steps": 8}), 500, "server", "a mistake of ours")
    assert client.wait(SHORT).status == 200


def test_a_deleted_clip_stops_being_made(client, monkeypatch):
    chunks: list[int] = []
    step = RolloutSessions.step
    monkeypatch.setattr(RolloutSessions, "step", lambda *a, **k: (chunks.append(1), step(*a, **k)))
    long = client.post({"prompt": PROMPT, "seconds": 60}).json["id"]
    while client.ask("GET", f"/v1/videos/{long}").json["progress"] == 0:
        time.sleep(0.05)
    assert client.ask("DELETE", f"/v1/videos/{long}").json["deleted"]
    check(client.ask("GET", f"/v1/videos/{long}"), 404, "not-found", long)
    assert client.wait(SHORT).status == 200  # its thread is free again
    assert len(chunks) < 60 * 4


def test_the_newest_clips_stay_and_are_there_for_the_next_server(client, folder):
    names = [client.wait({**SHORT, "seed": seed}).json["id"] for seed in range(KEEP + 1)]
    listed = client.ask("GET", "/v1/videos?limit=100").json["data"]
    # room is made just after the answer
    assert [clip["id"] for clip in listed][:KEEP] == names[:0:-1]
    client.wait(SHORT)
    assert client.ask("GET", f"/v1/videos/{names[0]}").status == 404
    assert not (folder / f"{names[0]}.mp4").exists()

    (folder / "video_0.json").write_text('{"created_at": 1, "ab')  # the server died while it wrote

    async def again() -> list[dict[str, Any]]:
        return [job.answer() for job in Jobs(lambda asked: None, folder=folder, keep=3, at_once=1).newest(2)]

    assert asyncio.run(again()) == client.ask("GET", "/v1/videos?limit=2").json["data"]


def test_a_line_that_is_too_long_is_said(client, monkeypatch):
    monkeypatch.setattr(serve_jobs, "MAX_WAITING", 0)
    answer = client.post(SHORT)
    check(answer, 429, "busy", "ask again later")
    assert answer.headers["retry-after"] == "10"


def test_the_page_needs_no_token_and_names_no_other_origin(client):
    for path in ("/", "/page.js", "/page.css"):
        answer = client.ask("GET", path, Authorization="")
        assert answer.status == 200
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        text = answer.content.decode().replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text
        assert "https:" not in text


def test_a_model_says_what_it_can_do(client):
    (found,) = client.ask("GET", "/v1/models").json["data"]
    facts = ModelFacts.read(find_model("bounce"), "bounce")
    assert (found["id"], found["size"], found["fps"], found["sample_rate"]) == ("bounce", "64x64", 16, 16000)
    assert found["caption_bytes"] == facts.cfg.model.text_tokens
    assert found["speech_bytes"] == 0
    assert found["world"] == "bounce"
    assert found["examples"]
    assert all(len(e["caption"].encode()) <= found["caption_bytes"] for e in found["examples"])


def test_examples_of_a_model_that_speaks_hold_speech():
    facts = ModelFacts.read(find_model("bounce"), "talker")
    model = facts.cfg.model.model_copy(update={"speech_bytes": 32, "text_tokens": 48})
    facts = replace(facts, facts={}, cfg=facts.cfg.model_copy(update={"model": model}))
    assert facts.world == "talker"
    assert all(e["caption"].endswith("says") and e["speech"] for e in facts.examples())
    assert replace(facts, name="mine").examples() == []


def test_files_that_a_model_of_one_modality_cannot_take_are_refused_at_once():
    facts = ModelFacts.read(find_model("bounce"), "bounce")
    objective = facts.cfg.objective.model_copy(update={"picture_alone": 1.0})
    facts = replace(facts, cfg=facts.cfg.model_copy(update={"objective": objective}))
    assert facts.abilities()["inputs"] == ["input_image", "input_video"]
    sound = io.BytesIO()
    with wave.open(sound, "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(np.random.default_rng(0).integers(-9000, 9000, 32000, dtype=np.int16).tobytes())
    fields = {"prompt": PROMPT, "input_audio": Upload("a.wav", sound.getvalue())}
    with pytest.raises(Problem, match="input_audio: bounce was trained without sound; leave it out"):
        asyncio.run(read_request(fields, facts))


@pytest.mark.parametrize(
    ("room", "words"),
    [
        (99, "a red steel ball and a blue glass one, moving up"),
        (40, "a red steel ball and a blue glass one"),
        (36, "a red steel ball"),
        (3, ""),
    ],
)
def test_an_example_is_cut_where_it_stands_on_its_own(room, words):
    assert fitting("a red steel ball and a blue glass one, moving up", room) == words


@pytest.mark.slow
def test_mistakes_on_the_command_line_get_one_line(tmp_path):
    assert "shipped: bounce" in complaint("serve", "opera")[0]
    assert "--token: 8 or more" in complaint("serve", "bounce", "--token", "abc")[0]
    (tmp_path / "file").touch()
    assert "is a file" in complaint("serve", "bounce", "--out", tmp_path / "file")[0]


def test_a_taken_port_is_said_with_another():
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(UserError, match=r"--port \d+: .*in use; use another, such as --port"),
    ):
        check_port("127.0.0.1", taken.getsockname()[1])
