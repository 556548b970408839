"""Pictures of a data set's page: histograms and waveforms as inline SVG, strips of frames as JPEG."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import matplotlib
import numpy as np
from einops import rearrange
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from ray_jobs.report_figures import COLORS, INK, inline_svg

# T frames, H W pixels, C colours, N values or samples.

BINS = 28
GAP_PX = 3  # between frames of a strip
WAVE_POINTS = 300


def histogram(
    values_N: np.ndarray, *, x_label: str, alt: str, color: str = "video", log_x: bool = False
) -> str:
    """How many clips have which value, as <svg>; a dashed line at the median."""
    values_N = values_N[np.isfinite(values_N)]
    if log_x:
        values_N = values_N[values_N > 0]
    if not len(values_N):
        return ""
    low, high = float(values_N.min()), float(values_N.max())
    if low == high:
        low, high = (low * 0.8, high * 1.25) if log_x else (low - 0.5, high + 0.5)
    edges = np.geomspace(low, high, BINS + 1) if log_x else np.linspace(low, high, BINS + 1)
    counts, _ = np.histogram(np.clip(values_N, edges[0], edges[-1]), edges)
    with matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": alt, "font.size": 9, "font.family": "sans-serif"}
    ):
        figure = Figure(figsize=(5.2, 2.3), layout="constrained")
        axes = figure.add_subplot()
        axes.bar(
            edges[:-1], counts, np.diff(edges), align="edge", color=COLORS[color], alpha=0.85, linewidth=0
        )
        axes.axvline(float(np.median(values_N)), color=INK, linewidth=1.0, linestyle="--")
        if log_x:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("")
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel(x_label, color=INK)
        axes.set_ylabel("clips", color=INK)
        axes.tick_params(colors=INK, which="both", length=3, width=0.6)
        axes.grid(True, axis="y", color=COLORS["muted"], alpha=0.22, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set(color=COLORS["muted"], linewidth=0.8)
        return inline_svg(figure, escape(alt, quote=True))


def bars(counts: dict[str, int], *, most: int = 8) -> str:
    """Counts as rows of HTML, the largest first; what is beyond `most` is added up."""
    shown = sorted(((n, c) for n, c in counts.items() if c), key=lambda each: (-each[1], each[0]))
    if not shown:
        return '<p class="rest">none</p>'
    rest = sum(count for _, count in shown[most:])
    rows = shown[:most] + (
        [(f"{len(shown) - most} other{'s' * (len(shown) > most + 1)}", rest)] if rest else []
    )
    top = max(count for _, count in rows)
    cells = "".join(
        f'<tr><td>{escape(name)}</td><td class="amount"><i style="width:{100 * count / top:.1f}%"></i></td>'
        f"<td>{count:,}</td></tr>"
        for name, count in rows
    )
    return f'<table class="bars"><tbody>{cells}</tbody></table>'


def strip_jpeg(video_THWC: np.ndarray) -> str:
    """Frames side by side as a data address."""
    framed = np.pad(video_THWC, ((0, 0), (0, 0), (0, GAP_PX), (0, 0)), constant_values=255)
    image = Image.fromarray(np.ascontiguousarray(rearrange(framed, "t h w c -> h (t w) c")[:, :-GAP_PX]))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def waveform(audio_N: np.ndarray, *, alt: str, points: int = WAVE_POINTS) -> str:
    """Highest and lowest sample of each stretch as <svg>, scaled so that the loudest fills the height."""
    points = min(points, max(1, len(audio_N)))
    edges = np.linspace(0, len(audio_N), points + 1).astype(int)[:-1]
    high_N, low_N = np.maximum.reduceat(audio_N, edges), np.minimum.reduceat(audio_N, edges)
    peak = max(float(high_N.max(initial=0)), -float(low_N.min(initial=0)), 1e-6)
    scale = 48 / peak if peak > 1e-3 else 0.0
    x_N = np.linspace(0, 1000, points)
    top = _points(x_N, 50 - high_N * scale - 0.6)
    bottom = _points(x_N[::-1], 50 - low_N[::-1] * scale + 0.6)
    return (
        f'<svg class="wave" viewBox="0 0 1000 100" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(alt, quote=True)}"><polygon points="{top} {bottom}"/></svg>'
    )


def _points(x_N: Sequence[float] | np.ndarray, y_N: np.ndarray) -> str:
    return " ".join(f"{x:.0f},{y:.1f}" for x, y in zip(x_N, y_N, strict=True))
