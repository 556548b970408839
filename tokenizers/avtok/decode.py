"""Read clips by presentation timestamps: facts of a file, and cuts of it.

Both streams of a file share one origin: the earlier of their first presented times.
"""

from __future__ import annotations

from avtok.clock import frame_grid_s
from avtok.media import ClipError, DecodedClip, MediaInfo

__all__ = ["ClipError", "DecodedClip", "MediaInfo", "decode_clip", "probe"]


def probe(uri: str) -> MediaInfo:
    """Demux the whole file once, decode its sound and its first picture. ClipError if neither is usable."""
    from avtok.reading.probe import probe_media  # opens media: not needed to import this

    return probe_media(uri)


def decode_clip(
    uri: str,
    *,
    start_s: float,
    end_s: float,
    fps: float,
    size: tuple[int, int],
    sample_rate: int,
    context_frames: int = 0,
    context_samples: int = 0,
    audio_uri: str | None = None,
) -> DecodedClip:
    """Cut [start_s, end_s) seconds from the origin, preceded by left context.

    Frame i is the last one shown at or before start_s + i / fps (the first one before anything was shown).
    The sound has exactly round((end_s - start_s) * sample_rate) samples, zeros where nothing was recorded.
    size
    is (height, width): the shorter side is fitted and the centre kept. audio_uri is a second file whose own
    origin is the clip's time 0. A stream that is absent or has nothing decodable is None, and `probe` says
    why. ClipError where neither is left, and for a cut past the last picture.
    """
    if not 0 <= start_s < end_s:
        raise ClipError(f"{uri}: a cut needs 0 <= start < end, got {start_s} to {end_s} s")
    from avtok.reading.container import kept_open
    from avtok.reading.picture import read_picture
    from avtok.reading.sound import read_sound

    grid_s = frame_grid_s(start_s, end_s, fps=fps, context_frames=context_frames)
    first = round(start_s * sample_rate) - context_samples
    last = first + context_samples + round((end_s - start_s) * sample_rate)
    with kept_open():
        video_THWC = read_picture(uri, grid_s, size)
        audio_N = read_sound(audio_uri or uri, first, last, sample_rate)
    if video_THWC is None and audio_N is None:
        raise ClipError(f"{uri}: no picture and no sound could be decoded")
    return DecodedClip(video_THWC, audio_N, context_frames, context_samples, start_s, end_s)
