"""Films of 1920x1080 with sound, as encoders of films make them."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

HEIGHT, WIDTH, FPS, RATE = 1080, 1920, 30, 48000


def write_film(path: Path, seconds: float, *, seed: int) -> None:
    """Texture that drifts, and noise: what an encoder of films has to spend bits on."""
    random = np.random.default_rng(seed)
    texture = (
        random.integers(0, 256, (HEIGHT // 8 + 60, WIDTH // 8 + 60, 3), dtype=np.uint8)
        .repeat(8, 0)
        .repeat(8, 1)
    )
    tone = 0.3 * np.sin(2 * np.pi * (200 + 50 * seed) * np.arange(round(seconds * RATE)) / RATE)
    with av.open(str(path), "w") as container:
        picture = container.add_stream(
            "libx264", rate=FPS, options={"preset": "ultrafast", "crf": "26", "g": "60"}
        )
        picture.width, picture.height, picture.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        sound = container.add_stream("aac", rate=RATE, layout="mono")
        for number in range(round(seconds * FPS)):
            x, y = 2 * number % 400, number % 300
            frame = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(texture[y : y + HEIGHT, x : x + WIDTH]), format="rgb24"
            )
            container.mux(picture.encode(frame))
        container.mux(picture.encode(None))
        for start in range(0, len(tone), 1024):
            block = np.ascontiguousarray(tone[None, start : start + 1024], dtype=np.float32)
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = RATE, start
            container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
