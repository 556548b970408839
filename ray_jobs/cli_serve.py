"""`worldmodel serve`: one model behind an API and a page, until Ctrl-C."""

from __future__ import annotations

import ipaddress
import secrets
import signal
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from ray_jobs.cli_output import Address, Json, answer
from ray_jobs.errors import UserError
from ray_jobs.models import find_model

MIN_TOKEN = 8  # characters
TOKEN = "what requests must carry; default: drawn and printed once. Other users see a command line, not its "


def serve(
    model: Annotated[str, typer.Argument(help="shipped name, exported folder or run")],
    host: Annotated[str, typer.Option(help="address to listen at; 0.0.0.0 is all of them")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    token: Annotated[str | None, typer.Option(envvar="WORLDMODEL_TOKEN", help=TOKEN + "environment")] = None,
    replicas: Annotated[int, typer.Option(min=1, help="processes of the model, a clip at a time each")] = 1,
    keep: Annotated[int, typer.Option(min=1, help="newest clips that are kept")] = 200,
    out: Annotated[
        Path | None, typer.Option(help="folder of the clips, found again next time; default: for this time")
    ] = None,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """A page and an API (in the style of OpenAI's videos) that make clips from prompts, until Ctrl-C."""
    folder = find_model(model)
    drawn = token is None
    token = secrets.token_urlsafe(24) if token is None else checked_token(token)
    if out is not None and out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file; give a folder")
    from ray_jobs.progress import ProgressDisplay
    from ray_jobs.serve import ServeSettings, start

    with ExitStack() as stack:
        if out is None:
            out = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="worldmodel-serve-")))
        settings = ServeSettings(
            folder=folder,
            name=Path(model).name,
            token=token,
            out=out.resolve(),
            host=host,
            port=port,
            replicas=replicas,
            keep=keep,
        )
        with ProgressDisplay() as display:
            server = start(settings, address=address, say=display)
        stack.callback(server.stop)
        stopped = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopped.set())
        page = f"{settings.url}/#token={token}" if drawn else f"{settings.url}/"
        if not _is_loopback(host):
            typer.echo(
                f"--host {host}: there is no TLS, so others may read along; put a proxy in front",
                err=True,
            )
        lines = [f"page: {page}", f"API:  {settings.url}/v1/videos (Authorization: Bearer TOKEN)"]
        answer(
            {"page": page, "url": settings.url, "token": token if drawn else None, "model": settings.name},
            as_json,
            "\n".join([*lines, "Ctrl-C ends it."]),
        )
        stopped.wait()
        typer.echo("ending", err=True)


def checked_token(token: str) -> str:
    """UserError for one that is easily guessed or cannot stand in a header."""
    if (
        len(token) < MIN_TOKEN
        or not token.isascii()
        or any(c.isspace() or not c.isprintable() for c in token)
    ):
        raise UserError(
            f"--token: {MIN_TOKEN} or more printable characters without spaces are needed, got {len(token)}; "
            "leave it out and one is drawn"
        )
    return token


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
