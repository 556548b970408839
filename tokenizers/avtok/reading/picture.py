"""The picture of a cut: frames by presentation time, on a grid."""

from __future__ import annotations

import av
import numpy as np

from avtok.clock import slack_s
from avtok.media import ClipError
from avtok.reading.container import (
    SEEK_AFTER_S,
    because,
    best_streams,
    first_times_s,
    frames,
    identity,
    is_image_format,
    open_media,
    seek_to,
    time_s_of,
)
from avtok.reading.frame import pixel_aspect, to_rgb

# T frames, H W pixels, C channels.


def read_picture(uri: str, grid_s: np.ndarray, size: tuple[int, int], seek: bool = True) -> np.ndarray | None:
    origin_s, faults = first_times_s(*identity(uri))[0], []
    images: list[np.ndarray] = []
    shown: av.VideoFrame | None = None
    shown_image: np.ndarray | None = None
    shown_end_s = 0.0
    with open_media(uri) as container:
        stream = best_streams(container)[0]
        if stream is None:
            return None
        tick = stream.time_base or 0
        slack, aspect = slack_s(tick), pixel_aspect(stream)
        seek = seek and grid_s[0] > SEEK_AFTER_S and seek_to(container, stream, grid_s[0] + origin_s)
        for frame in frames(container, stream, av.VideoFrame, faults):
            time_s = time_s_of(frame) - origin_s
            if seek and shown is None and time_s > grid_s[0] + slack:  # the index pointed past the cut
                return read_picture(uri, grid_s, size, seek=False)
            while shown is not None and len(images) < len(grid_s) and grid_s[len(images)] + slack < time_s:
                shown_image = to_rgb(shown, aspect, size) if shown_image is None else shown_image
                images.append(shown_image)
            if len(images) == len(grid_s):
                break
            if shown is None or time_s + origin_s >= time_s_of(shown):
                shown, shown_image = frame, None
                shown_end_s = time_s + float((frame.duration or 0) * tick)
        is_image = is_image_format(container)
        if shown is None:
            return read_picture(uri, grid_s, size, seek=False) if seek else None
        if len(images) < len(grid_s):
            step_s = float(grid_s[1] - grid_s[0]) if len(grid_s) > 1 else 0.0
            if not is_image and shown_end_s + max(step_s, 0.1) < grid_s[-1]:
                raise ClipError(
                    f"{uri}: the picture ends at {shown_end_s:.3f} s, "
                    f"the cut needs {grid_s[-1]:.3f} s{because(faults)}"
                )
            images += [to_rgb(shown, aspect, size)] * (len(grid_s) - len(images))
    return np.stack(images)
