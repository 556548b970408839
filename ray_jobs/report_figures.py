"""Pictures of the report: inline SVG in the page's text colour, and PNG strips of frames and sound."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from einops import rearrange
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from PIL import Image

# T frames, H rows, W columns, C colours, N samples, S spectrum frames, F frequencies, M mel bands.

INK = "#010203"  # drawn with this, shown in the page's text colour
COLORS = {
    "video": "#3f7fe8",
    "audio": "#d9822b",
    "rollout": "#3f7fe8",
    "truth": "#2f9e6e",
    "baseline": "#c4504b",
    "muted": "#8a8f98",
}
LEAST_ERROR = 3e-4  # box widths; a log axis has no zero
Rows = Sequence[dict[str, Any]]


def line_figure(
    lines: Sequence[dict[str, Any]],
    *,
    x_label: str,
    y_label: str,
    alt: str,
    log_y: bool = False,
    size_in: tuple[float, float] = (5.2, 2.75),
) -> str:
    """One small plot as <svg>. A line: {x, y, color}, and perhaps label, low, high, style, faint, points."""
    with matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": alt, "font.size": 9, "font.family": "sans-serif"}
    ):
        figure = Figure(figsize=size_in, layout="constrained")
        axes = figure.add_subplot()
        for line in lines:
            color = COLORS.get(line["color"], line["color"])
            if "low" in line:
                axes.fill_between(line["x"], line["low"], line["high"], color=color, alpha=0.18, linewidth=0)
            axes.plot(
                line["x"],
                line["y"],
                color=color,
                linestyle="none" if line.get("points") else line.get("style", "-"),
                marker="o" if line.get("points") else None,
                markersize=4.5,
                linewidth=0.7 if line.get("faint") else 1.7,
                alpha=0.35 if line.get("faint") else 1.0,
                label=line.get("label"),
            )
        if log_y:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(x_label, color=INK)
        axes.set_ylabel(y_label, color=INK)
        axes.tick_params(colors=INK, which="both", length=3, width=0.6)
        axes.grid(True, color=COLORS["muted"], alpha=0.22, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set(color=COLORS["muted"], linewidth=0.8)
        if any(line.get("label") for line in lines):
            beside = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if len(lines) > 4 else {}
            axes.legend(frameon=False, labelcolor=INK, fontsize=8.5, handlelength=1.6, **beside)
        return inline_svg(figure, alt)


def loss_figures(rows: Rows) -> list[tuple[str, str]]:
    """(caption, svg) of flow loss per modality with held-out points, alignment, and gradient norm."""
    figures: list[tuple[str, str]] = []
    for modality in ("video", "audio"):
        lines = _curve(rows, f"loss_{modality}", modality, "training")
        held_out = _column(rows, f"eval_{modality}")
        if len(held_out[0]):
            lines.append(
                {
                    "x": held_out[0],
                    "y": held_out[1],
                    "color": "truth",
                    "points": True,
                    "label": "held out, EMA",
                }
            )
        if lines:
            alt = f"Flow loss of {modality} against training step"
            figures.append(
                (
                    f"Flow loss, {modality}",
                    line_figure(lines, x_label="step", y_label="mean squared error", alt=alt, log_y=True),
                )
            )
    align = _curve(rows, "align_video", "video", "video") + _curve(rows, "align_audio", "audio", "audio")
    if align:
        alt = "Alignment loss of both modalities against training step"
        figures.append(
            ("Self-Flow alignment", line_figure(align, x_label="step", y_label="1 - cosine", alt=alt))
        )
    norm = _curve(rows, "grad_norm", "muted", None)
    if norm:
        alt = "Gradient norm against training step"
        figures.append(
            ("Gradient norm", line_figure(norm, x_label="step", y_label="norm", alt=alt, log_y=True))
        )
    return figures


def throughput_figures(rows: Rows) -> list[tuple[str, str]]:
    figures: list[tuple[str, str]] = []
    for key, caption, unit in (
        ("tokens_per_s", "Throughput", "tokens / s"),
        ("stall_fraction", "Waiting for data", "fraction of step time"),
    ):
        lines = _curve(rows, key, "video" if key == "tokens_per_s" else "audio", None)
        if lines:
            alt = f"{caption} ({unit}) against training step"
            figures.append((caption, line_figure(lines, x_label="step", y_label=unit, alt=alt)))
    return figures


def horizon_figure(horizon: dict[str, Any]) -> str:
    """Position error against horizon, with the floor beneath it and the baselines above."""
    x, low, high = horizon["horizon_s"], horizon["ci_low"], horizon["ci_high"]
    references = horizon.get("references", {})

    def line(name: str, y: list[float], color: str, style: str = "-") -> dict[str, Any]:
        return {"x": x, "y": np.maximum(y, LEAST_ERROR), "color": color, "label": name, "style": style}

    lines = [
        line(name.replace("_", " "), y, "baseline", style)
        for (name, y), style in zip(horizon["baselines"].items(), ("--", ":"), strict=False)
        if None not in y  # one clip alone has no unrelated one
    ]
    lines += [line(name.replace("_", " "), y, "muted", "-.") for name, y in references.items()]
    lines.append({**line("rollout, 95% CI", horizon["value"], "rollout"), "low": low, "high": high})
    lines.append(line("tracker on truth", horizon["floor"], "truth"))
    return line_figure(
        lines,
        x_label="seconds after the last given frame",
        y_label="box widths",
        alt="Position error against horizon: rollout with confidence band, baselines and floor",
        log_y=True,
        size_in=(8.6, 3.1),
    )


def filmstrip_png(video_THWC: np.ndarray, *, columns: int = 16, height_px: int = 96) -> str:
    """Frames side by side as a data address. Column i shows what begins at i / columns of the clip."""
    chosen = video_THWC[np.arange(columns) * len(video_THWC) // columns]
    strip = Image.fromarray(np.ascontiguousarray(rearrange(chosen, "t h w c -> h (t w) c")))
    if strip.height < height_px:  # whole multiples keep small pixels crisp
        factor = height_px // strip.height
        strip = strip.resize((strip.width * factor, strip.height * factor), Image.Resampling.NEAREST)
    else:
        strip = strip.resize((round(strip.width * height_px / strip.height), height_px))
    return png_address(strip)


def sound_png(audio_N: np.ndarray, *, sample_rate: int, width_px: int = 768, bands: int = 48) -> str:
    """Log-mel picture of the whole clip as a data address: -70 to -10 dB, low frequencies at the bottom."""
    size = 512
    starts = np.linspace(0, max(len(audio_N) - 1, 0), width_px).astype(int)
    padded = np.pad(audio_N, (size // 2, size // 2 + 1))
    frames_SN = np.stack([padded[start : start + size] for start in starts]) * np.hanning(size)
    power_SF = np.abs(np.fft.rfft(frames_SN)) ** 2 / (size / 4) ** 2
    mel = 2595 * np.log10(1 + np.fft.rfftfreq(size, 1 / sample_rate) / 700)
    centers_M = np.linspace(0, mel[-1], bands + 2)[1:-1]
    filters_FM = np.maximum(0, 1 - np.abs(mel[:, None] - centers_M) / (1.5 * (centers_M[1] - centers_M[0])))
    level_SM = 10 * np.log10(power_SF @ filters_FM + 1e-9)
    shade_MS = np.clip((level_SM.T[::-1] + 70) / 60, 0, 1)
    image = (matplotlib.colormaps["magma"](shade_MS)[..., :3] * 255).astype(np.uint8)
    return png_address(Image.fromarray(image))


def _curve(rows: Rows, key: str, color: str, label: str | None) -> list[dict[str, Any]]:
    """The raw values, faint, and a running mean over about a thirtieth of the run."""
    x, y = _column(rows, key)
    if not len(x):
        return []
    width = max(1, len(y) // 30)
    total = np.cumsum(np.concatenate([[0.0], y]))
    first = np.maximum(np.arange(len(y)) - width + 1, 0)
    mean = (total[1:] - total[first]) / (np.arange(len(y)) - first + 1)
    return [
        {"x": x, "y": y, "color": color, "faint": True},
        {"x": x, "y": mean, "color": color, "label": label},
    ]


def _column(rows: Rows, key: str) -> tuple[np.ndarray, np.ndarray]:
    pairs = [
        (row["step"], row[key]) for row in rows if isinstance(row.get(key), int | float) and "step" in row
    ]
    table = np.array(pairs, dtype=float).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def inline_svg(figure: Figure, alt: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>',
        rf'<svg viewBox="\1" role="img" aria-label="{alt}">',
        svg,
        count=1,
    )
    return re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px; font-family: inherit", svg).replace(
        INK, "currentColor"
    )


def png_address(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
