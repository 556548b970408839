"""Levels of a sound while it is decoded: EBU R128 loudness, peak, mean power, silence. Memory stays flat."""

# PyAV's planes are buffers; its stubs do not say so
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from math import log10

import av
import av.filter
import numpy as np
from av.error import BlockingIOError as NothingYetError
from av.error import EOFError as NoMoreError
from av.error import FFmpegError

from avtok.reading.sound import mono

# N samples.

SILENCE_DBFS = -80.0  # below it nothing was recorded; above it there is sound
QUIET_DBFS = -60.0  # below it a tenth of a second counts as silent
LEAST_DBFS = -120.0
UNGATED_LUFS = -70.0  # what the filter says while nothing passed its gate
_LEAST = 10 ** (LEAST_DBFS / 20)


class Levels:
    """Fed with decoded frames, it measures tenths of a second, as FFmpeg's ebur128 cuts them.

    Loudness is of all channels as laid out; peak and power are of their mean, which is what is trained on.
    """

    def __init__(self) -> None:
        self.peak = 0.0
        self.square_sum, self.num_samples = 0.0, 0
        self.num_blocks = self.num_silent = 0
        self.loudest_dbfs = LEAST_DBFS  # of a tenth of a second
        self._loudness_lufs, self._num_metered = (
            UNGATED_LUFS,
            0,
        )  # of the blocks since the last change of form
        self._before: list[tuple[float, int]] = []  # the same of what came before it
        self._graph: _Loudness | None = None
        self._form: tuple[object, ...] = ()

    def add(self, frame: av.AudioFrame) -> None:
        form = (frame.format.name, frame.layout.name, frame.sample_rate)
        if form != self._form:  # broadcasts change from stereo to 5.1 and back
            self.finish()
            self._form = form
            try:
                self._graph = _Loudness(frame)
            except (FFmpegError, ValueError):  # a layout that the standard does not weigh
                self._graph = None
        if self._graph is None:
            self._measure(frame)
            return
        for block in self._graph.push(frame):
            self._measure(block)

    def finish(self) -> None:
        if self._graph is not None:
            for block in self._graph.push(None):
                self._measure(block)
            self._before.append((self._loudness_lufs, self._num_metered))
            self._loudness_lufs, self._num_metered, self._graph = UNGATED_LUFS, 0, None

    @property
    def loudness_lufs(self) -> float | None:
        """Integrated; None where the standard does not say: less than 0.4 s of it, or all below its gate."""
        heard = [(lufs, blocks) for lufs, blocks in self._before if lufs > UNGATED_LUFS]
        if not heard:
            return None
        power = sum(10 ** (lufs / 10) * blocks for lufs, blocks in heard)
        return 10 * log10(power / sum(blocks for _, blocks in heard))

    @property
    def peak_dbfs(self) -> float:
        return 20 * log10(max(self.peak, _LEAST))

    @property
    def rms_dbfs(self) -> float:
        return 10 * log10(max(self.square_sum / max(self.num_samples, 1), _LEAST**2))

    @property
    def silent_fraction(self) -> float:
        return self.num_silent / self.num_blocks if self.num_blocks else 1.0

    @property
    def has_sound(self) -> bool:
        return self.loudest_dbfs > SILENCE_DBFS

    def _measure(self, block: av.AudioFrame) -> None:
        mono_N = _mean_of_doubles(block) if block.format.name == "dbl" else mono(block)
        if not len(mono_N):
            return
        square_sum = float(mono_N @ mono_N)
        level_dbfs = 10 * log10(max(square_sum / len(mono_N), _LEAST**2))
        self.peak = max(self.peak, float(mono_N.max()), -float(mono_N.min()))
        self.square_sum, self.num_samples = self.square_sum + square_sum, self.num_samples + len(mono_N)
        self.num_blocks, self.num_silent = self.num_blocks + 1, self.num_silent + (level_dbfs < QUIET_DBFS)
        self.loudest_dbfs = max(self.loudest_dbfs, level_dbfs)
        if value := block.metadata.get("lavfi.r128.I"):
            self._loudness_lufs, self._num_metered = float(value), self._num_metered + 1


def _mean_of_doubles(block: av.AudioFrame) -> np.ndarray:
    """As `mono`, without its copies: the meter hands out interleaved doubles, ten times a second."""
    channels = len(block.layout.channels)
    samples_N = np.frombuffer(block.planes[0], np.float64, count=block.samples * channels)
    if channels > 1:
        samples_N = samples_N.reshape(-1, channels) @ np.full(channels, 1 / channels)
    return samples_N if np.isfinite(samples_N.sum()) else np.nan_to_num(samples_N)


class _Loudness:
    """FFmpeg's ebur128: frames in, blocks of a tenth of a second out, with loudness in their metadata.

    Blocks are fetched a second at a time: each time that none is left costs an exception.
    """

    def __init__(self, frame: av.AudioFrame) -> None:
        self.graph = av.filter.Graph()
        self.source = self.graph.add_abuffer(
            sample_rate=frame.sample_rate,
            format=frame.format.name,
            layout=frame.layout.name,
            time_base=frame.time_base,
        )
        meter = self.graph.add("ebur128", "metadata=1:framelog=quiet")
        self.sink = self.graph.add("abuffersink")
        self.source.link_to(meter)
        meter.link_to(self.sink)
        self.graph.configure()
        self.held = 0  # samples pushed since blocks were fetched

    def push(self, frame: av.AudioFrame | None) -> list[av.AudioFrame]:
        """Blocks that are due; all that is left for None."""
        self.source.push(frame)
        if frame is not None:
            self.held += frame.samples
            if self.held < frame.sample_rate:
                return []
        self.held = 0
        blocks: list[av.AudioFrame] = []
        try:
            while True:
                blocks.append(self.sink.pull())
        except (NothingYetError, NoMoreError):
            return blocks
