"""The body of a request, JSON or a multipart form -> its fields and files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from email.message import Message
from typing import Any

from fastapi import Request

from ray_jobs.serve_problems import Problem

MAX_BODY_BYTES = 64 << 20
FORM, JSON = "multipart/form-data", "application/json"
# Only these are opened: a playlist would make FFmpeg read whatever it names.
SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    *((4, b"ftyp", ".mp4"), (0, b"\x1a\x45\xdf\xa3", ".mkv"), (8, b"AVI ", ".avi"), (8, b"WAVE", ".wav")),
    *((0, b"OggS", ".ogg"), (0, b"fLaC", ".flac"), (0, b"ID3", ".mp3"), (0, b"\xff\xfb", ".mp3")),
    *((0, b"\xff\xf3", ".mp3"), (0, b"\xff\xf1", ".aac"), (0, b"\x89PNG", ".png"), (0, b"\xff\xd8", ".jpg")),
    *((8, b"WEBP", ".webp"), (0, b"GIF8", ".gif"), (0, b"BM", ".bmp"), (4, b"moov", ".mov")),
)


@dataclass(frozen=True)
class Upload:
    """One file of a form. name: as the sender calls it."""

    name: str
    content: bytes

    @property
    def suffix(self) -> str:
        """By its first bytes. Problem for what is no picture, clip or sound."""
        for at, signature, suffix in SIGNATURES:
            if self.content[at : at + len(signature)] == signature:
                return suffix
        raise Problem(
            422,
            "media",
            f"{self.name}: {len(self.content)} bytes that are no picture, clip or sound; "
            "send PNG, JPEG, WebP, MP4, WebM, WAV, MP3, FLAC or Ogg",
        )


async def read_body(request: Request) -> dict[str, Any]:
    """Fields by name; a file is an Upload. Problem for what cannot be read or is too large."""
    kind = Message()
    kind["content-type"] = request.headers.get("content-type", JSON)
    media_type = kind.get_content_type()
    if media_type not in (JSON, FORM):
        raise Problem(
            415, "body", f"Content-Type {media_type}: send {JSON}, or {FORM} when files go with the prompt"
        )
    content = await _content(request)
    return _form(content, kind) if media_type == FORM else _json(content)


async def _content(request: Request) -> bytes:
    too_large = Problem(
        413, "too-large", f"the request has more than {MAX_BODY_BYTES >> 20} MiB; send shorter clips"
    )
    if int(request.headers.get("content-length") or 0) > MAX_BODY_BYTES:
        raise too_large
    parts, size = [], 0
    async for part in request.stream():
        parts.append(part)
        size += len(part)
        if size > MAX_BODY_BYTES:
            raise too_large
    return b"".join(parts)


def _json(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(400, "body", f'the body is not JSON ({error}); send {{"prompt": "..."}}') from None
    if not isinstance(found, dict):
        raise Problem(
            400, "body", f'the body is JSON, but {found!r:.40} is no object; send {{"prompt": "..."}}'
        )
    return found


def _form(content: bytes, kind: Message) -> dict[str, Any]:
    boundary = kind.get_param("boundary")
    mark = b"\r\n--" + str(boundary).encode()
    parts = (b"\r\n" + content).split(mark)
    if not boundary or len(parts) < 2 or not parts[-1].startswith(b"--"):
        raise Problem(400, "body", "the form has no end, or no boundary in its Content-Type; send it again")
    found: dict[str, Any] = {}
    for part in parts[1:-1]:
        head, gap, value = part.partition(b"\r\n\r\n")
        about = Message()
        for line in head.decode("utf-8", "replace").split("\r\n"):
            name, _, text = line.partition(":")
            if name:
                about[name] = text.strip()
        field = about.get_param("name", header="content-disposition")
        if not gap or not isinstance(field, str):
            raise Problem(400, "body", "a part of the form has no name; send it again")
        file = about.get_filename()
        if file is None:
            found[field] = _text(field, value)
        elif value or file:  # browsers send an empty file for a field that was left alone
            found[field] = Upload(file or field, value)
    return found


def _text(field: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise Problem(400, "body", f"{field} is not UTF-8; send it as text") from None
