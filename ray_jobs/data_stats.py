"""What a manifest holds, as numbers: `worldmodel data stats`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from ray_jobs.errors import UserError
from ray_jobs.manifest_table import plain_reason, read_left_out, read_manifest
from ray_jobs.metrics import reason_label

# N rows.

TENTHS = {"least": 0, "10%": 10, "median": 50, "90%": 90, "most": 100}


def describe(manifest: str) -> dict[str, Any]:
    """What a manifest holds: clips, hours, sound and picture, labels, cost of decoding, what was left out."""
    if not Path(manifest).is_file():
        raise UserError(
            f"{manifest}: no such manifest; make one with: worldmodel index SOURCE... --out {manifest}"
        )
    rows = Rows(manifest)
    bad = read_left_out(manifest)
    seen = rows["has_video"].astype(bool)
    heard = rows["has_sound"].astype(bool)
    spans_s = rows.seconds
    labels = {name: int((rows[name] != "").sum()) for name in ("caption", "transcript", "actions")}
    return {
        "clips": len(spans_s),
        "files": len(set(rows["uri"].tolist())),
        "hours": float(spans_s.sum()) / 3600,
        "hours_with_sound": float(spans_s[heard].sum()) / 3600,
        "with_sound": int(heard.sum()),
        "without_picture": int((~seen).sum()),
        "still_pictures": int((seen & (rows["duration_s"] == 0)).sum()),
        "variable_rate": int(rows["is_vfr"].sum()),
        "hdr": int(rows["is_hdr"].sum()),
        "turned": int((rows["rotation_deg"] != 0).sum()),
        "interlaced": int(rows["is_interlaced"].sum()),
        "late_sound": int((np.abs(_known(rows["av_start_s"])) > 0.02).sum()),
        "with_caption": labels["caption"],
        "with_transcript": labels["transcript"],
        "with_timed_speech": sum('"start"' in cues for cues in rows["speech_json"]),
        "with_actions": labels["actions"],
        "labels_made": rows.labels_made(),
        "seconds": _spread(spans_s),
        "frames_per_s": _spread(rows["fps"][seen & (rows["fps"] > 0)]),
        "loudness_lufs": _spread(_known(rows["loudness_lufs"])),
        "drift_s": _spread(rows["drift_s"][seen & heard]),
        "sizes": _counted(f"{w}x{h}" for w, h in zip(rows["width"][seen], rows["height"][seen], strict=True)),
        "containers": _counted(rows["container"]),
        "picture_codecs": _counted(rows["video_codec"][seen]),
        "sound_codecs": _counted(codec for codec in rows["audio_codec"] if codec),
        "licenses": _counted(name or "not given" for name in rows["license"]),
        "core_hours_to_decode": float((spans_s * rows["decode_cost_s"]).sum()) / 3600,
        "quarantined": len(bad),
        "quarantine_by_kind": _counted(reason_label(row["reason"]) for row in bad),
        "quarantine_by_reason": _counted(plain_reason(row) for row in bad),
    }


def as_text(facts: dict[str, Any]) -> str:
    """Lines for people; single reasons are on the page and in the quarantine file."""
    shown = {name: value for name, value in facts.items() if name != "quarantine_by_reason"}
    return "\n".join(f"{name.replace('_', ' ')}: {_said(value)}" for name, value in shown.items())


class Rows:
    """Columns of a manifest as arrays."""

    def __init__(self, manifest: str) -> None:
        self.table = read_manifest(manifest)

    def __getitem__(self, name: str) -> np.ndarray:
        return np.array(self.table[name].to_numpy())

    @property
    def seconds(self) -> np.ndarray:
        return self["end_s"] - self["start_s"]

    def labels_made(self) -> int:
        """Clips with a label that a model wrote, where the manifest tells."""
        for name in ("labels_json", "label_json"):
            if name in self.table.column_names:
                return sum(bool(json.loads(text)) for text in self[name] if text)
        return 0


def _known(values_N: np.ndarray) -> np.ndarray:
    numbers_N = values_N.astype(np.float64)
    return numbers_N[np.isfinite(numbers_N)]


def _spread(values_N: np.ndarray) -> dict[str, float]:
    if not len(values_N):
        return {}
    return {name: float(np.percentile(values_N, tenth)) for name, tenth in TENTHS.items()}


def _counted(values: Any) -> dict[str, int]:
    return dict(Counter(str(value) for value in values).most_common())


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_said(each)}" for name, each in value.items()) or "none"
    return (
        f"{value:.3g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
    )
