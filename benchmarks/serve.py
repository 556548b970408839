"""What the server adds to the model's own time, in ms: 16 and 32 users, one request a second each.

The replica is a stub that answers at once with a small clip, and says how long it took. A request is `POST
/v1/videos` that waits for its clip, JSON in and out, over kept connections; users begin at
random times and do not wait for answers that are late (open loop). Overhead is a request's time at the
client, in a process of its own, less the replica's time; the figure is the median of the users' requests.
Lost is every request that got no clip.

Prediction: three hops between processes (client, ingress, replica and back), 1 to 3 ms each with their share
of two cores, a small file and JSON: 8 to 12 ms at 16 users, little more at 32. (Through Serve's own proxy it
was 17 to 23 ms: two hops more, for what is asked and for its body.)

`python benchmarks/serve.py URL TOKEN USERS SECONDS` is the client.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any

USERS = (16, 32)
SECONDS, WARM_S, SMOKE_S = 20.0, 3.0, 2.0
TIMEOUT_S = 30.0


def run(smoke: bool) -> Any:
    import ray

    from ray_jobs import serve
    from ray_jobs.bench import Measured
    from ray_jobs.models import find_model

    token, port, log = secrets.token_urlsafe(24), _free_port(), []
    raw: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="worldmodel-bench-serve-") as folder:
        settings = serve.ServeSettings(
            find_model("bounce"), "bounce", token, Path(folder), port=port, keep=50
        )
        server = serve.start(settings, replica=_stub())
        try:
            _load(settings.url, token, USERS[0], WARM_S)
            for users in USERS:
                found = _load(settings.url, token, users, SMOKE_S if smoke else SECONDS)
                raw[str(users)] = found
                log.append(f"{users} users: {json.dumps(summary(found))}")
        finally:
            server.stop()
            ray.shutdown()
    few, many = (summary(raw[str(users)]) for users in USERS)
    return Measured(
        figures={
            "overhead_ms_16_users": few["overhead_ms"],
            "lost_32_users": many["lost"],
            "lost_16_users": few["lost"],
            "overhead_ms_32_users": many["overhead_ms"],
            "overhead_ms_p95_16_users": few["overhead_ms_p95"],
            "overhead_ms_p95_32_users": many["overhead_ms_p95"],
        },
        raw=raw,
        n=sum(len(found) for found in raw.values()),
        baseline={"model_ms_16_users": few["model_ms"]},
        config=f"users: {list(USERS)}\nseconds: {SECONDS:g}\nrequests_per_user_per_s: 1\nreplicas: 1\n",
        log="\n".join(log) + "\n",
    )


def summary(found: list[dict[str, Any]]) -> dict[str, float]:
    """Of one load: milliseconds and counts."""
    got = [row for row in found if row["status"] == 200]
    over = [1e3 * (row["latency_s"] - row["model_s"]) for row in got]
    return {
        "requests": len(found),
        "lost": len(found) - len(got),
        "overhead_ms": round(median(over), 2) if over else float("nan"),
        "overhead_ms_p95": round(quantiles(over, n=20)[-1], 2) if len(over) > 1 else float("nan"),
        "model_ms": round(1e3 * median(row["model_s"] for row in got), 4) if got else float("nan"),
    }


def _stub() -> type:
    """Defined in a function so that it travels to the replica as it is; this file is on no worker's path."""

    class AtOnce:
        def __init__(self, folder: str, name: str) -> None:
            import numpy as np

            from avtok.mux import write_clip

            with tempfile.TemporaryDirectory() as place:
                path = Path(place) / "clip.mp4"
                write_clip(
                    path, np.zeros((8, 64, 64, 3), np.uint8), np.zeros(8000), fps=16, sample_rate=16000
                )
                self.mp4 = path.read_bytes()

        async def make(self, asked: Any) -> AsyncIterator[dict[str, Any]]:
            began = time.perf_counter()
            clip = {"mp4": self.mp4, "sha256": "0" * 64, "num_frames": 8, "seconds": 0.5}
            yield {**clip, "model_s": time.perf_counter() - began}

    return AtOnce


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _load(url: str, token: str, users: int, seconds: float) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, __file__, url, token, str(users), str(seconds)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=seconds + 2 * TIMEOUT_S,
    )
    return json.loads(done.stdout)


async def users_ask(url: str, token: str, users: int, seconds: float) -> list[dict[str, Any]]:
    import aiohttp

    draw = random.Random(0)
    headers = {"Authorization": f"Bearer {token}", "Prefer": "wait"}
    limits = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(
        headers=headers, timeout=limits, connector=aiohttp.TCPConnector(limit=0)
    ) as session:

        async def ask(at: float) -> dict[str, Any]:
            await asyncio.sleep(at - time.perf_counter())
            began = time.perf_counter()
            try:
                async with session.post(
                    f"{url}/v1/videos", json={"prompt": "a red steel ball", "seed": 0}
                ) as response:
                    found = await response.json(content_type=None)
                    return {
                        "status": response.status,
                        "latency_s": time.perf_counter() - began,
                        "model_s": found.get("model_s"),
                    }
            except (aiohttp.ClientError, TimeoutError) as error:
                return {"status": repr(error), "latency_s": time.perf_counter() - began, "model_s": None}

        start = time.perf_counter() + 0.5
        begins = [start + draw.random() for _ in range(users)]
        times = [begin + second for begin in begins for second in range(round(seconds))]
        return list(await asyncio.gather(*map(ask, times)))


if __name__ == "__main__":
    place, secret, count, length = sys.argv[1:]
    print(json.dumps(asyncio.run(users_ask(place, secret, int(count), float(length)))))
