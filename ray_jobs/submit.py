"""Sends a subcommand to a Ray cluster as a job, follows its log and says how it ended."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args
from urllib.parse import urlsplit

from ray_jobs.cluster import TOKEN_ADVICE, no_answer
from ray_jobs.errors import JobError, UserError
from ray_jobs.runtime_env import ROOT, is_checkout, job_runtime_env
from ray_jobs.shared_paths import is_store, shared_media, shared_models
from worldmodel.load_config import load_config
from worldmodel.model_folder import shipped_models

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

Kind = Literal["train", "render", "rollout", "tokenize", "serve", "demo"]
OnLine = Callable[[str], None]
DASHBOARD_PORT = 8265
GCS_PORT = 6379
LAST_LINES = 12  # of the log, told when the job fails
POLL_S = 0.5
CHATTY = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
    "ray._private.runtime_env.working_dir",
)


@dataclass(frozen=True)
class SubmitResult:
    """status: Ray's own word, such as SUCCEEDED, or RUNNING when the job was left to itself."""

    job_id: str
    status: str


def submit(
    kind: str,
    args: Sequence[str],
    *,
    address: str,
    working_dir: str | Path | None = None,
    wait: bool = True,
    on_line: OnLine | None = None,
) -> SubmitResult:
    """Runs `worldmodel KIND ARGS` as a job on the cluster whose dashboard is at `address`. on_line gets each
    line of its log, with the line end. Ctrl-C leaves the job to itself. `serve` goes on until it is stopped.

    UserError for what was given (also when the job itself says so by exit 2), JobError with the end of the
    log when the job fails.
    """
    if kind not in get_args(Kind):
        raise UserError(f"submit {kind}: cannot be a job; use one of {', '.join(get_args(Kind))}")
    folder = None if working_dir is None else Path(working_dir).resolve()
    args = check_paths(kind, list(args), folder or (ROOT if is_checkout() else None))
    entrypoint = shlex.join(["python", "-m", "ray_jobs.cli", kind, *args])
    return submit_command(entrypoint, address=address, working_dir=folder, wait=wait, on_line=on_line)


def submit_command(
    entrypoint: str,
    *,
    address: str,
    working_dir: Path | None = None,
    wait: bool = True,
    on_line: OnLine | None = None,
) -> SubmitResult:
    """Runs any shell command as a job that has the packages. Errors as `submit`."""
    import aiohttp

    client = job_client(address)
    for name in CHATTY:  # after the import, which sets their level
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        job_id = client.submit_job(entrypoint=entrypoint, runtime_env=job_runtime_env(working_dir))
    except ValueError as error:  # the package is too large, or the folder is none
        raise UserError(f"{working_dir or ROOT}: cannot be sent to {address}: {error}") from None
    except RuntimeError as error:
        raise JobError(f"{address}: the job was refused: {_first_line(error)}") from None
    say = on_line or (lambda line: None)
    say(f"job {job_id}; stop it: ray job stop {job_id} --address {normal_address(address)}\n")
    if not wait:
        return SubmitResult(job_id, client.get_job_status(job_id).value)
    last: deque[str] = deque(maxlen=LAST_LINES)
    try:
        asyncio.run(_follow(client, job_id, say, last))
        return _outcome(client, job_id, last)
    except KeyboardInterrupt:
        say(f"\njob {job_id} goes on; follow it: ray job logs {job_id} --follow\n")
        return SubmitResult(job_id, "RUNNING")
    except (OSError, RuntimeError, aiohttp.ClientError) as error:  # requests' errors are OSErrors
        raise JobError(
            f"{address}: contact lost ({_first_line(error)}); job {job_id} goes on if its cluster does: "
            f"ray job status {job_id} --address {normal_address(address)}"
        ) from None


def job_client(address: str) -> JobSubmissionClient:
    """A client of the dashboard's job server. UserError when nothing answers, or our token is refused."""
    import requests
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    url = normal_address(address)
    parts = urlsplit(url)
    port = parts.port or 443
    if problem := no_answer(parts.hostname or "", port):
        raise UserError(
            f"--address {address}: no Ray dashboard answers at {url} ({problem}); "
            "`ray start --head` prints its address, it needs ray[default]"
        )
    try:
        return JobSubmissionClient(url, headers=auth_headers())
    except AuthenticationError:
        raise UserError(
            f"--address {address}: the cluster asks for a token and refused ours; {TOKEN_ADVICE}"
        ) from None
    except (ConnectionError, RuntimeError, requests.exceptions.RequestException):
        hint = f"{port} is the port of workers" if port == GCS_PORT else "another program answers there"
        raise UserError(
            f"--address {address}: no Ray dashboard at {url}: {hint}; the dashboard's is {DASHBOARD_PORT}"
        ) from None


def normal_address(address: str) -> str:
    """The dashboard's URL: `host` -> http://host:8265, `host:port` -> http://host:port, `ray://host:port` ->
    http://host:8265 (that port is another server's), `auto` -> this machine."""
    if address == "auto":
        return f"http://127.0.0.1:{DASHBOARD_PORT}"
    parts = urlsplit(address if "://" in address else f"http://{address}")
    if parts.scheme not in ("http", "https", "ray") or not parts.hostname:
        raise UserError(f"--address {address}: not an address; use http://HOST:{DASHBOARD_PORT}")
    if parts.scheme == "ray":
        return f"http://{_bracketed(parts.hostname)}:{DASHBOARD_PORT}"
    if parts.scheme == "http" and parts.port is None:
        return f"http://{_bracketed(parts.hostname)}:{DASHBOARD_PORT}"
    return address.rstrip("/") if "://" in address else f"http://{address}"


def auth_headers() -> dict[str, str]:
    """The token as a header, where there is one. Ray's client sends it only when RAY_AUTH_MODE=token is set,
    but `ray start` turns the check on by itself as soon as ~/.ray/auth_token exists."""
    if os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return {}
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if not token and file.is_file():
        token = file.read_text("utf-8")
    return {"Authorization": f"Bearer {token.strip()}"} if token.strip() else {}


def check_paths(kind: str, args: list[str], working_dir: Path | None) -> list[str]:
    """The arguments as the job needs them: it runs in a temporary copy of working_dir on another machine, so
    results go to absolute paths and the config is in the copy. ConfigError or UserError otherwise."""
    if "--out" not in _names(args) and kind in ("demo", "render", "rollout"):
        raise UserError(f"submit {kind}: --out is missing; give a folder that every node mounts")
    for name in ("--out", "--prompts"):
        for path in _values(args, name):
            _must_be_absolute(name, path)
    if kind in ("rollout", "serve"):
        _check_model(kind, args)
    if kind not in ("train", "tokenize"):
        return args
    is_config = [
        a.endswith((".yaml", ".yml")) and b != "--set" for a, b in zip(args, ["", *args], strict=False)
    ]
    config = is_config.index(True) if any(is_config) else None
    if config is None:
        raise UserError(f"submit {kind}: no config given; name a .yaml file")
    cfg = load_config(args[config], _values(args, "--set"))  # its mistakes are told here, not by a job
    _must_be_absolute("storage", cfg.storage)
    for name, path in (*shared_media(cfg), *shared_models(cfg)):
        _must_be_absolute(name, path)
    file = Path(args[config]).resolve()
    if working_dir is None or not file.is_relative_to(working_dir):
        raise UserError(
            f"{args[config]}: lies outside of what is sent "
            f"({working_dir or 'nothing: this is no checkout'}); "
            "move it there, or give its folder as working_dir"
        )
    return [*args[:config], str(file.relative_to(working_dir)), *args[config + 1 :]]


def _check_model(kind: str, args: list[str]) -> None:
    """A run or folder must be there for the job too; a shipped model travels with the packages."""
    is_value = [
        before.startswith("--") and "=" not in before and before != "--json" for before in ["", *args[:-1]]
    ]
    given = [a for a, value in zip(args, is_value, strict=True) if not value and not a.startswith("-")]
    shipped = shipped_models()
    if not given:
        raise UserError(f"submit {kind}: no model given; shipped: {', '.join(shipped)}")
    if given[0] not in shipped:
        _must_be_absolute("model", given[0])


def _must_be_absolute(what: str, path: str) -> None:
    if not is_store(path) and not Path(path).is_absolute():
        raise UserError(
            f"{what}={path}: the job runs in a temporary folder; give an absolute path that every node mounts"
        )


def _names(args: list[str]) -> set[str]:
    return {arg.partition("=")[0] for arg in args}


def _values(args: list[str], name: str) -> list[str]:
    """Of `--name value` and `--name=value`, in order."""
    values = []
    for arg, following in zip(args, [*args[1:], ""], strict=True):
        if arg == name:
            values.append(following)
        elif arg.startswith(f"{name}="):
            values.append(arg.removeprefix(f"{name}="))
    return values


async def _follow(client: JobSubmissionClient, job_id: str, say: OnLine, last: deque[str]) -> None:
    open_line = ""
    async for text in client.tail_job_logs(job_id):
        *lines, open_line = (open_line + text).split("\n")
        for line in lines:
            last.append(line)
            say(f"{line}\n")
    if open_line:
        last.append(open_line)
        say(f"{open_line}\n")


def _outcome(client: JobSubmissionClient, job_id: str, last: deque[str]) -> SubmitResult:
    from ray.job_submission import JobStatus

    while not (info := client.get_job_info(job_id)).status.is_terminal():  # the log ends a moment earlier
        time.sleep(POLL_S)
    if info.status == JobStatus.FAILED:
        failure = UserError if info.driver_exit_code == UserError.exit_code else JobError
        reason = _first_line(info.message or "no reason given").removesuffix(
            "last available logs (truncated to 20,000 chars):"
        )
        raise failure(f"job {job_id} failed: {reason.rstrip(' ,')}", *(line for line in last if line.strip()))
    return SubmitResult(job_id, info.status.value)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _first_line(error: object) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
