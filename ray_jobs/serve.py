"""`worldmodel serve`: an ingress with the table of clips, and replicas of one model, on Ray Serve."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextvars import Context
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import uvicorn
from ray import serve
from ray.exceptions import ActorUnavailableError, RayActorError, RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from ray_jobs.cluster import connect
from ray_jobs.errors import JobError, UserError
from ray_jobs.serve_api import build_app
from ray_jobs.serve_facts import ModelFacts
from ray_jobs.serve_jobs import Jobs, Make, ReplicaLost
from ray_jobs.serve_model import ModelReplica
from ray_jobs.serve_request import Asked
from worldmodel.model_folder import SHIPPED

APP = "worldmodel"
BACKLOG = 1024  # connections
LISTEN_TIMEOUT_S = 30.0
# A dead process is replaced after at most two seconds, and the end of the server waits for no clip.
AT_ONCE: dict[str, Any] = {
    "health_check_period_s": 2.0,
    "graceful_shutdown_timeout_s": 1.0,
    "graceful_shutdown_wait_loop_s": 0.1,
}
QUIET = {"enable_access_log": False, "log_level": "WARNING"}

Progress = Callable[[str, dict[str, Any]], None]


@dataclass(frozen=True)
class ServeSettings:
    """folder: of the model. out: where clips lie, on this machine. keep: the newest that stay."""

    folder: Path
    name: str
    token: str
    out: Path
    host: str = "127.0.0.1"
    port: int = 8000
    replicas: int = 1
    keep: int = 200

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


class Ingress:
    """The one process that answers HTTP. It listens itself: through Serve's proxy each request would take two
    hops more, and the address of that proxy is one for all that a cluster serves."""

    def __init__(self, model: DeploymentHandle, settings: ServeSettings, facts: ModelFacts) -> None:
        jobs = Jobs(through(model), folder=settings.out, keep=settings.keep, at_once=settings.replicas)
        app = build_app(jobs, facts, token=settings.token)
        self.server = uvicorn.Server(
            uvicorn.Config(app, host=settings.host, port=settings.port, access_log=False, log_level="warning")
        )
        self.answers: asyncio.Task[None] | None = None

    async def listen(self) -> None:
        """Returns when requests are answered. OSError when the address cannot be had."""
        config = self.server.config
        if self.answers is None:
            family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
            place = socket.create_server((config.host, config.port), family=family, backlog=BACKLOG)
            self.answers = asyncio.create_task(self.server.serve([place]), context=Context())
        while not self.server.started and not self.answers.done():
            await asyncio.sleep(0.01)
        if self.answers.done():
            raise RuntimeError("the HTTP server has ended")

    async def check_health(self) -> None:
        """Serve asks every process, so one that replaces a dead one listens, too."""
        await self.listen()


def through(model: DeploymentHandle) -> Make:
    """What a replica says, as it says it. ReplicaLost when its process ends."""
    streaming = model.options(stream=True)

    async def make(asked: Asked) -> AsyncIterator[dict[str, Any]]:
        said: Any = streaming.make.remote(asked)
        ended = False
        try:
            async for event in said:
                yield event
            ended = True
        except (RayActorError, ActorUnavailableError):
            ended = True
            raise ReplicaLost from None
        finally:
            if not ended:  # a word to the replica that nobody listens any more
                said.cancel()

    return make


class Server:
    """A server that runs; `stop` ends it."""

    def __init__(self, settings: ServeSettings, *, local: bool) -> None:
        """local: Ray was started for it."""
        self.settings, self.local = settings, local

    def stop(self) -> None:
        if self.local:
            ray.shutdown()
            return
        serve.delete(APP)
        if not _running_apps():
            serve.shutdown()


def start(
    settings: ServeSettings,
    *,
    address: str | None = None,
    replica: Callable[..., Any] = ModelReplica,
    say: Progress | None = None,
) -> Server:
    """Returns when the page answers. UserError when the port is taken; JobError when the model does not load.

    replica: the class of a model's process. say: called with (stage, info), as a ProgressDisplay is.
    """
    facts = ModelFacts.read(settings.folder, settings.name)
    local = address is None and not ray.is_initialized() and not os.environ.get("RAY_ADDRESS")
    if local:
        check_port(settings.host, settings.port)
    say = say or (lambda stage, info: None)
    say("start", {})
    connect(address)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    if APP in _running_apps():
        raise UserError(
            "a model is served on this cluster already; end that, or serve on a cluster of its own"
        )
    say("loading the model", {"note": f"{settings.name}, replicas: {settings.replicas}"})
    server = Server(settings, local=local)
    try:
        serve.start(proxy_location="Disabled", logging_config=QUIET)
        ingress = serve.run(_app(settings, facts, replica), name=APP, route_prefix=None, logging_config=QUIET)
        ingress.listen.remote().result(timeout_s=LISTEN_TIMEOUT_S)
    except (RuntimeError, RayServeException, RayError, TimeoutError) as error:
        why = _why(error)
        server.stop()
        raise JobError(f"{settings.name} could not be served: {why}") from None
    return server


def _app(settings: ServeSettings, facts: ModelFacts, replica: Callable[..., Any]) -> serve.Application:
    here = f"node:{ray.util.get_node_ip_address()}"  # where `out` is
    model = serve.deployment(
        name="model",
        num_replicas=settings.replicas,
        max_constructor_retry_count=1,  # what cannot be loaded once cannot be loaded twice
        max_ongoing_requests=2,  # one is made; the next may come before the last is quite gone
        **AT_ONCE,
    )(replica)
    ingress = serve.deployment(
        name="ingress",
        ray_actor_options={"num_cpus": 0, "resources": {here: 0.001}},
        **AT_ONCE,
    )(Ingress)
    return ingress.bind(model.bind(_travels(settings.folder), settings.name), settings, facts)


def check_port(host: str, port: int) -> None:
    """UserError when it is taken, or is not ours to take."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UserError(
                f"--host {host} --port {port}: {error.strerror or error}; use another, such as "
                f"--port {port + 1}"
            ) from None


def _running_apps() -> set[str]:
    try:
        return set(serve.status().applications)
    except RayServeException:  # no Serve there yet
        return set()


def _travels(folder: Path) -> str:
    """A shipped model goes by its name: it lies elsewhere on another machine."""
    shipped = folder.resolve().is_relative_to(SHIPPED.resolve())
    return folder.name if shipped else str(folder.resolve())


def _why(error: Exception) -> str:
    """The error of the process that did not start, as far as Serve tells it."""
    app = serve.status().applications.get(APP)
    messages = [found.message for found in app.deployments.values()] if app else []
    lines = [line.strip() for text in (*messages, str(error)) for line in text.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "Error" in line), lines[0] if lines else repr(error))
