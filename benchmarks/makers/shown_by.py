"""What a file shows of a loss: found without the reading code that is held to it. Runs in the sandbox."""

from __future__ import annotations

import av
from av.error import FFmpegError

TOLERANCE_S = 0.15
# They declare how long they are; of others FFmpeg guesses from the bit rate or the last packet.
DECLARING = frozenset(
    {
        "mov",
        "matroska",
        "avi",
        "flv",
        "wav",
        "aiff",
        "caf",
        "flac",
        "asf",
        "mxf",
        "mp3",
        "ogg",
        "mpeg",
        "mpegts",
    }
)


def shown_by(path: str, every_picture: bool = False) -> str:
    """One thing that shows that something is gone; empty where nothing does.

    The sound is decoded, and of the picture the first frame, or every frame.
    """
    with av.open(path, metadata_errors="replace") as container:
        kind = container.format.name.split(",")[0]
        declared_s = {s.index: _declared_s(s) for s in container.streams} if kind in DECLARING else {}
        for stream in container.streams:
            if stream.type in ("video", "audio") and stream.codec_context is None:
                return f"stream {stream.index} has no decoder"
        ends_s: dict[int, float] = {}
        has_picture = False
        packets = container.demux()
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                break
            except FFmpegError as error:
                return f"demuxing stops: {error}"
            if packet.stream.type not in ("video", "audio"):
                continue
            if packet.is_corrupt:
                return f"a packet of stream {packet.stream_index} is marked corrupt"
            stamp = packet.pts if packet.pts is not None else packet.dts
            if packet.size and stamp is not None:
                end_s = float((stamp + (packet.duration or 0)) * packet.time_base)
                ends_s[packet.stream_index] = max(ends_s.get(packet.stream_index, 0.0), end_s)
            if packet.stream.type == "video" and has_picture and not every_picture:
                continue
            try:
                frames = packet.decode()
            except (FFmpegError, ValueError) as error:
                return f"a packet of stream {packet.stream_index} fails: {error}"
            has_picture |= packet.stream.type == "video" and bool(frames)
            if any(getattr(frame, "is_corrupt", False) for frame in frames):
                return f"a frame of stream {packet.stream_index} is marked corrupt"
        whole_s = (container.duration or 0) / av.time_base
        last_s = max(ends_s.values(), default=0.0)
        first_s = (container.start_time or 0) / av.time_base
        for index, known_s in declared_s.items():
            if index in ends_s and known_s > ends_s[index] + TOLERANCE_S:
                return f"stream {index} declares {known_s:.3f} s and has {ends_s[index]:.3f} s"
        if kind in DECLARING and whole_s + first_s > last_s + TOLERANCE_S:
            return f"it declares {whole_s:.3f} s and has {last_s - first_s:.3f} s"
    return ""


def _declared_s(stream: av.stream.Stream) -> float:
    start_s = float((stream.start_time or 0) * (stream.time_base or 0))
    if stream.duration is not None and stream.time_base is not None:
        return start_s + float(stream.duration * stream.time_base)
    parts = stream.metadata.get("DURATION", "").split(":")  # Matroska's own tag
    return sum(float(part) * 60**place for place, part in enumerate(reversed(parts)) if part)
