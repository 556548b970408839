"""As much of Google's JSON interface as reading takes: `bucket` is the folder given. Prints its port."""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit


class Handler(BaseHTTPRequestHandler):
    folder: Path

    def do_GET(self) -> None:
        asked = urlsplit(self.path)
        query = parse_qs(asked.query)
        inside = asked.path.partition("/b/bucket/o")[2] or asked.path.removeprefix("/bucket")
        path = self.folder / unquote(inside[1:])
        if asked.path.endswith("/b/bucket/o"):
            prefix = query.get("prefix", [""])[0]
            names = sorted(str(p.relative_to(self.folder)) for p in self.folder.rglob("*") if p.is_file())
            items = [self.facts(name) for name in names if name.startswith(prefix)]
            self.answer(json.dumps({"kind": "storage#objects", "items": items}).encode())
        elif asked.path.endswith("/b/bucket"):
            self.answer(b'{"kind": "storage#bucket", "name": "bucket"}')
        elif not path.is_file():
            self.answer(b"{}", status=404)
        elif "alt" in query or "/o/" not in asked.path:
            first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
            self.answer(path.read_bytes()[int(first) : int(last) + 1 if last else None])
        else:
            self.answer(json.dumps(self.facts(str(path.relative_to(self.folder)))).encode())

    def facts(self, name: str) -> dict[str, str]:
        about = {"kind": "storage#object", "bucket": "bucket", "name": name, "generation": "1"}
        size = (self.folder / name).stat().st_size
        return about | {"size": str(size), "updated": "2026-01-02T03:04:05.678Z"}

    def answer(self, body: bytes, status: int = 200) -> None:
        self.send_response(206 if status == 200 and "Range" in self.headers else status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


if __name__ == "__main__":
    Handler.folder = Path(sys.argv[1])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    sys.stdout.write(f"{server.server_address[1]}\n")
    sys.stdout.flush()
    server.serve_forever()
