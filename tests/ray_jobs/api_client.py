"""A program that calls the API, with nothing but the standard library."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pytest

TOKEN = "a-token-of-tests"
BOUNDARY = "----worldmodel-tests"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)


class Client:
    def __init__(self, url: str, token: str = TOKEN) -> None:
        self.place, self.token = urlsplit(url).netloc, token

    def ask(
        self, method: str, path: str, body: bytes | Iterator[bytes] | None = None, **headers: str
    ) -> Answer:
        """body: an iterator is sent in chunks, its length unsaid. headers: names with _ for -; an empty one
        is left out."""
        given = {"Authorization": f"Bearer {self.token}"} | {
            k.replace("_", "-"): v for k, v in headers.items()
        }
        connection = http.client.HTTPConnection(self.place, timeout=120)
        try:
            connection.request(method, path, body, {k: v for k, v in given.items() if v})
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, names, response.read())
        finally:
            connection.close()

    def post(self, fields: Any, **headers: str) -> Answer:
        return self.ask(
            "POST", "/v1/videos", json.dumps(fields).encode(), Content_Type="application/json", **headers
        )

    def wait(self, fields: Any) -> Answer:
        return self.post(fields, Prefer="wait")

    def form(self, fields: dict[str, str], files: dict[str, tuple[str, bytes]], **headers: str) -> Answer:
        """files: field -> (file name, content)."""
        head = f"--{BOUNDARY}\r\nContent-Disposition: form-data; name="
        parts = [f'{head}"{name}"\r\n\r\n{value}\r\n'.encode() for name, value in fields.items()]
        parts += [
            f'{head}"{name}"; filename="{file}"\r\nContent-Type: a/b\r\n\r\n'.encode() + content + b"\r\n"
            for name, (file, content) in files.items()
        ]
        body = b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()
        return self.ask(
            "POST", "/v1/videos", body, Content_Type=f"multipart/form-data; boundary={BOUNDARY}", **headers
        )

    def follow(self, name: str) -> list[dict[str, Any]]:
        """Every state that was seen, until the clip ended."""
        seen: list[dict[str, Any]] = []
        ends_at = time.monotonic() + 120
        while time.monotonic() < ends_at:
            seen.append(self.ask("GET", f"/v1/videos/{name}").json)
            if seen[-1]["status"] in ("completed", "failed"):
                return seen
            time.sleep(0.02)
        pytest.fail(f"{name} did not end: {seen[-1]}")
