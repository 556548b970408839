"""Read clips by presentation timestamps: facts of a file, and cuts of it.

Both streams of a file share one origin: the earlier of their first presented times.
"""

from __future__ import annotations

from typing import Literal

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
    backend: Literal["pyav", "torchcodec", "decord"] = "pyav",
) -> DecodedClip:
    """Cut [start_s, end_s) seconds from the origin, preceded by left context.

    Frame i is the last one shown at or before start_s + i / fps (the first one before anything was shown).
    The sound has exactly round((end_s - start_s) * sample_rate) samples, zeros where nothing was recorded.
    size is (height, width): the shorter side is fitted and the centre kept. audio_uri is a second file whose
    own origin is the clip's time 0. A stream that is absent or has nothing decodable is None, and `probe`
    says why. ClipError where neither is left, and for a cut past the last picture.

    backend: who decodes the picture. Times, turns and colours are PyAV's to say for all, and so is the sound,
    whose priming, gaps and drift are kept on one clock with the picture. torchcodec and decord refuse, with
    a ClipError that names them, what they would show wrongly. decord can hang for good: ask for it through
    `avtok.reader.open_reader`, which can kill it.
    """
    if not 0 <= start_s < end_s:
        raise ClipError(f"{uri}: a cut needs 0 <= start < end, got {start_s} to {end_s} s")
    from avtok.reading.container import MEDIA_ERRORS, kept_open, one_line
    from avtok.reading.picture import read_picture
    from avtok.reading.sound import read_sound

    grid_s = frame_grid_s(start_s, end_s, fps=fps, context_frames=context_frames)
    first = round(start_s * sample_rate) - context_samples
    last = first + context_samples + round((end_s - start_s) * sample_rate)
    try:
        with kept_open():
            video_THWC = read_picture(uri, grid_s, size, backend)
            audio_N = read_sound(audio_uri or uri, first, last, sample_rate)
    except MemoryError as error:
        raise ClipError(f"{uri}: decoding takes more memory than there is ({one_line(error)})") from error
    except MEDIA_ERRORS as error:
        raise ClipError(f"{uri}: cannot be decoded: {one_line(error)}") from error
    if video_THWC is None and audio_N is None:
        raise ClipError(f"{uri}: no picture and no sound could be decoded")
    return DecodedClip(video_THWC, audio_N, context_frames, context_samples, start_s, end_s)
