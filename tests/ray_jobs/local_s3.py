"""An S3 server on loopback, and what goes wrong on the way to one."""

from __future__ import annotations

import http.client
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any

import boto3
from moto.server import ThreadedMotoServer

KEY, SECRET = "loopback-key", "loopback-secret-that-nobody-may-print"
_numbers = count()


class LocalS3:
    """One bucket of its own on a server that tests share."""

    def __init__(self, address: str) -> None:
        self.address, self.bucket = address, f"bucket-{next(_numbers)}"
        self.client: Any = boto3.client(
            "s3",
            endpoint_url=address,
            region_name="us-east-1",
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
        )
        self.client.create_bucket(Bucket=self.bucket)

    def uri(self, key: str = "") -> str:
        return f"s3://{self.bucket}/{key}".rstrip("/")

    def put(self, key: str, content: bytes) -> str:
        self.client.put_object(Bucket=self.bucket, Key=key, Body=content)
        return self.uri(key)

    def upload(self, folder: Path, key: str) -> str:
        """Every file below `folder`."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(f"{key}/{path.relative_to(folder)}", path.read_bytes())
        return self.uri(key)


def s3_variables(address: str) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@contextmanager
def s3_server() -> Iterator[str]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


class Proxy:
    """Passes requests on, except that the next `failures` are answered with `status`. Keeps all requests."""

    def __init__(self, target: str) -> None:
        self.target = target.removeprefix("http://")
        self.status, self.failures = 503, 0
        self.requests: list[tuple[str, str, str]] = []  # method, path, range
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                proxy.answer(self)

            do_HEAD = do_GET

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, asked: BaseHTTPRequestHandler) -> None:
        self.requests.append((asked.command, asked.path, asked.headers.get("Range", "")))
        if self.failures > 0:
            self.failures -= 1
            status, headers, body = self.status, {}, b"<Error><Code>InternalError</Code></Error>"
        else:
            passed = http.client.HTTPConnection(self.target)
            passed.request(asked.command, asked.path, headers=dict(asked.headers))
            answer = passed.getresponse()
            status, headers, body = answer.status, dict(answer.getheaders()), answer.read()
        asked.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "connection", "transfer-encoding", "date", "server"):
                asked.send_header(name, value)
        length = headers.get("Content-Length", len(body)) if asked.command == "HEAD" else len(body)
        asked.send_header("Content-Length", str(length))
        asked.end_headers()
        if asked.command != "HEAD":
            asked.wfile.write(body)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
