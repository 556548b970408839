"""What all subcommands share: their common options, and one answer on standard output."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any, TextIO

import typer

Json = Annotated[bool, typer.Option("--json", help="print one JSON object on standard output")]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="override a setting: a.b=value; may be repeated")
]
Address = Annotated[
    str | None, typer.Option(help="Ray cluster to join; default: RAY_ADDRESS, else a local one")
]

INTERRUPTED = 130  # 128 + SIGINT

_answers: TextIO = sys.stdout


def keep_standard_output() -> None:
    """For the answer alone: Ray prints there when a worker dies, up to the very end."""
    global _answers
    _answers, sys.stdout = sys.stdout, sys.stderr


def answer(found: Any, as_json: bool, text: str) -> None:
    typer.echo(json.dumps(found, default=str) if as_json else text, file=_answers)


def short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
