"""Frames by torchcodec. Which frames, and how they are to be shown, is PyAV's to say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from avtok.media import ClipError
from avtok.reading.timetable import Timetable

_INSTALL = "pip install 'worldmodel[decoders]', and FFmpeg's shared libraries (Debian's package ffmpeg)"

VideoDecoder: Any = None
missing = ""
try:
    from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportPrivateImportUsage]
except ImportError as error:
    missing = f"torchcodec is not installed ({error}); {_INSTALL}"
except (RuntimeError, OSError) as error:  # what it raises where it finds no FFmpeg to load
    missing = f"torchcodec found no FFmpeg that it can load ({str(error).splitlines()[0]}); {_INSTALL}"


def frames_of(table: Timetable) -> Iterator[np.ndarray]:
    """Upright [H, W, 3] of each new place: uint8, or uint16 code values where the light is mapped."""
    if missing:
        raise ClipError(missing)
    import torch  # torchcodec has loaded it

    wide = not table.look.is_standard
    try:
        decoder = VideoDecoder(
            table.path,
            stream_index=table.stream_index,
            dimension_order="NHWC",
            num_ffmpeg_threads=1,
            output_dtype=torch.float32 if wide else torch.uint8,
        )
        before = -1
        for place in table.shown_T:
            if place == before:
                continue
            before = place
            frame, time_s = decoder.get_frame_at(place), float(int(table.stamps[place]) * table.tick)
            if abs(frame.pts_seconds - time_s) > float(table.tick) / 2:
                raise ClipError(
                    f"it shows the frame of {frame.pts_seconds:.4f} s at {time_s:.4f} s; use pyav"
                )
            pixels_HWC = frame.data.numpy()
            yield np.round(pixels_HWC * 65535).astype(np.uint16) if wide else pixels_HWC
    except (RuntimeError, IndexError, ValueError) as error:
        raise ClipError(str(error).splitlines()[0] if str(error) else type(error).__name__) from error
