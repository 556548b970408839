"""Frames by decord. Which frames, and how they are to be shown, is PyAV's to say.

It is not maintained, carries an FFmpeg of 2018 and can hang while it holds the interpreter: call it only
where the process may be killed (`avtok.reader.open_reader` sees to that).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from avtok.media import ClipError
from avtok.reading.timetable import Timetable

decord: Any = None
missing = ""
try:
    import decord
except (ImportError, OSError) as error:
    missing = f"decord is not installed ({error}); pip install 'worldmodel[decoders]', on x86-64 only"

_WITHOUT_INDEX = frozenset({"mpeg", "mpegts"})  # it seeks to other frames than it counts there
_SAME_TIME_S = 2e-3  # its times are float32


def frames_of(table: Timetable) -> Iterator[np.ndarray]:
    """Upright uint8 [H, W, 3] for each new place of the table."""
    if missing:
        raise ClipError(missing)
    if not table.look.is_standard:
        raise ClipError("it gives 8 bits a colour, too few for high dynamic range; use pyav or torchcodec")
    if table.container in _WITHOUT_INDEX:
        raise ClipError(f"it loses count in a file without an index ({table.container}); use pyav")
    if table.num_hidden:
        raise ClipError("it does not follow the edit list of this file; use pyav or torchcodec")
    try:
        reader = decord.VideoReader(table.path, ctx=decord.cpu(0), num_threads=1)
        _check_times(reader, table)
        before = -1
        for place in table.shown_T:
            if place != before:
                before = place
                yield reader[place].asnumpy()
    except (decord.DECORDError, RuntimeError, AssertionError, IndexError) as error:
        raise ClipError((str(error).strip() or type(error).__name__).splitlines()[-1]) from error


def _check_times(reader: Any, table: Timetable) -> None:
    """Its frames are numbered; the numbers mean what the stamps mean only where the times agree."""
    if len(reader) != len(table.stamps):
        raise ClipError(f"it counts {len(reader)} frames where the file has {len(table.stamps)}")
    begins_s = reader.get_frame_timestamp(list(range(len(reader))))[:, 0]
    ours_s = (table.stamps - table.stamps[0]) * table.tick.numerator / table.tick.denominator
    if not np.all(np.abs(begins_s - begins_s[0] - ours_s) <= _SAME_TIME_S):
        raise ClipError("its times are not those of the file; use pyav or torchcodec")
