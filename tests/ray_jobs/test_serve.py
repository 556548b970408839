"""The server on Ray Serve: the clips of Python, progress as it happens, and replicas that die."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ray_jobs import serve
from ray_jobs.errors import UserError
from ray_jobs.models import find_model
from tests.ray_jobs.api_client import TOKEN, Client
from worldmodel.pipeline import WorldModelPipeline

pytestmark = [pytest.mark.ray, pytest.mark.slow]

PROMPT = "a red steel ball"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> serve.ServeSettings:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    out = tmp_path_factory.mktemp("served")
    return serve.ServeSettings(find_model("bounce"), "bounce", TOKEN, out, port=port, replicas=2)


@pytest.fixture(scope="module")
def client(ray_cluster: None, settings: serve.ServeSettings) -> Iterator[Client]:
    server = serve.start(settings)
    yield Client(settings.url)
    server.stop()


def replicas(of: str = "model") -> list[int]:
    """Process ids of a deployment that this test's Ray runs."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline()[:1] and f"ServeReplica:worldmodel:{of}" in process.cmdline()[0]:
                found.append(process.pid)
        except psutil.Error:  # it ended meanwhile
            continue
    return found


def test_a_seed_gives_the_clip_that_python_gives(client, settings, tmp_path):
    ours = WorldModelPipeline.from_pretrained("bounce")(PROMPT, seed=3)
    ours.save(tmp_path / "ours.mp4")
    found = client.wait({"prompt": PROMPT, "seed": 3})
    assert found.status == 200
    assert (found.json["sha256"], found.json["seed"], found.json["status"]) == (ours.sha256, 3, "completed")
    content = client.ask("GET", f"/v1/videos/{found.json['id']}/content").content
    assert content == (tmp_path / "ours.mp4").read_bytes()
    assert (settings.out / f"{found.json['id']}.mp4").read_bytes() == content


def test_progress_is_that_of_the_chunks_and_others_are_answered_meanwhile(client):
    began = time.monotonic()
    posted = client.post({"prompt": PROMPT, "seconds": 4, "steps": 30})
    answered_s = time.monotonic() - began
    assert posted.status == 202
    assert posted.headers["location"] == f"/v1/videos/{posted.json['id']}"
    seen = client.follow(posted.json["id"])
    took_s = time.monotonic() - began
    progress = [state["progress"] for state in seen]
    assert progress == sorted(progress)
    assert len(set(progress)) >= 8  # of 16 chunks
    assert set(progress) <= {100 * chunk // 16 for chunk in range(16)} | {99, 100}
    assert len(seen) > 20  # the server answers while it makes
    assert answered_s < took_s / 2


def are_made_at_once(client) -> bool:
    """Whether two clips that were asked for together were ever both in the making; both become whole."""
    names = [client.post({"prompt": PROMPT, "seconds": 3, "steps": 30}).json["id"] for _ in range(2)]
    together, states = False, [{"status": "queued"}]
    while not together and "completed" not in [state["status"] for state in states]:
        states = [client.ask("GET", f"/v1/videos/{name}").json for name in names]
        together = all(state["status"] == "in_progress" and state["progress"] > 0 for state in states)
    for name in names:
        assert client.follow(name)[-1]["status"] == "completed"
    return together


def test_two_replicas_make_two_clips_at_once(client):
    # now and then Ray's router gives both to one replica, by queue lengths that it read a moment before
    assert any(are_made_at_once(client) for _ in range(4))


def test_a_clip_whose_replica_dies_is_made_by_another(client):
    alone = client.wait({"prompt": PROMPT, "seed": 4, "seconds": 3, "steps": 30}).json["sha256"]
    name = client.post({"prompt": PROMPT, "seed": 4, "seconds": 3, "steps": 30}).json["id"]
    while client.ask("GET", f"/v1/videos/{name}").json["progress"] == 0:
        time.sleep(0.02)
    killed = replicas()
    assert len(killed) == 2
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    seen = client.follow(name)
    assert (seen[-1]["status"], seen[-1]["sha256"]) == ("completed", alone)
    progress = [state["progress"] for state in seen]
    assert progress != sorted(progress)  # it began once more
    assert client.ask("GET", "/healthz").status == 200


def test_a_second_server_on_the_cluster_is_refused(client, settings):
    with pytest.raises(UserError, match="served on this cluster already"):
        serve.start(settings)
    assert client.ask("GET", "/healthz").status == 200


def test_the_page_comes_through_ray(client):
    page = Path(serve.__file__).parent / "studio" / "index.html"
    assert client.ask("GET", "/", Authorization="").content == page.read_bytes()


def test_when_the_process_that_listens_dies_another_listens_and_has_the_clips(client):
    made = client.wait({"prompt": PROMPT, "seed": 3, "num_frames": 4}).json
    (pid,) = replicas("ingress")
    os.kill(pid, signal.SIGKILL)
    found, ends_at = None, time.monotonic() + 90
    while found is None and time.monotonic() < ends_at:
        try:
            found = client.ask("GET", f"/v1/videos/{made['id']}")
        except OSError:
            time.sleep(0.2)
    assert found is not None
    assert found.json == made
    assert replicas("ingress") != [pid]
    again = client.wait({"prompt": PROMPT, "seed": 3, "num_frames": 4}).json
    assert again["sha256"] == made["sha256"]
