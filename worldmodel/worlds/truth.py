"""Exact truth of rendered clips: what moved where, and what touched what when. One Parquet row per clip."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from worldmodel.worlds.speech import SpeechEvent

# T frames, K bodies; the last axis of 2 is x to the right and y down, as image columns and rows.

WALLS = ("left", "right", "top", "bottom")


@dataclass(frozen=True)
class Contact:
    """Body `body` touches `other`: a wall, "body" (number `other_body`) or "pusher", at a sub-step time.

    impulse in standard balls times box widths per second.
    """

    time_s: float
    body: int
    other: str
    impulse: float
    other_body: int = -1


@dataclass(frozen=True, eq=False)
class Truth:
    """Positions and radii in box widths, velocities in box widths/s; frame i is the state at i / fps s.

    visible_TK: share of a body that nothing hides. occluder: left, top, right, bottom. actions_T2[i] is what
    the pusher was told from frame i to frame i + 1, in box widths/s. transcript: what is said to its end
    within the clip; words and phonemes have times. mouth_T2: how far open and how wide, each 0 to 1.
    """

    world: str
    split: str
    seed: int
    fps: int
    sample_rate: int
    duration_s: float
    caption: str
    materials: tuple[str, ...]
    colors: tuple[str, ...]
    radius_K: np.ndarray
    mass_K: np.ndarray
    positions_TK2: np.ndarray
    velocities_TK2: np.ndarray
    visible_TK: np.ndarray
    contacts: tuple[Contact, ...]
    occluder: tuple[float, float, float, float] | None = None
    pusher_T2: np.ndarray | None = None
    actions_T2: np.ndarray | None = None
    transcript: str = ""
    voice: str = ""
    words: tuple[SpeechEvent, ...] = ()
    phonemes: tuple[SpeechEvent, ...] = ()
    mouth_T2: np.ndarray | None = None
    clip: str = ""

    @property
    def contact_times_s(self) -> np.ndarray:
        return np.array([contact.time_s for contact in self.contacts])


@dataclass(frozen=True, eq=False)
class Episode:
    """One rendered clip: video_THWC uint8 RGB, audio_N float32 mono in [-1, 1], and what truly happened."""

    video_THWC: np.ndarray
    audio_N: np.ndarray
    truth: Truth


_PAIR = pa.list_(pa.float64(), 2)
_STATES = pa.list_(pa.list_(_PAIR))
_CONTACT = pa.struct(
    [
        ("time_s", pa.float64()),
        ("body", pa.int32()),
        ("other", pa.string()),
        ("impulse", pa.float64()),
        ("other_body", pa.int32()),
    ]
)
_SPEECH = pa.list_(pa.struct([("name", pa.string()), ("start_s", pa.float64()), ("end_s", pa.float64())]))
SCHEMA = pa.schema(
    [
        ("clip", pa.string()),
        ("world", pa.string()),
        ("split", pa.string()),
        ("seed", pa.int64()),
        ("fps", pa.int32()),
        ("sample_rate", pa.int32()),
        ("duration_s", pa.float64()),
        ("caption", pa.string()),
        ("materials", pa.list_(pa.string())),
        ("colors", pa.list_(pa.string())),
        ("radius", pa.list_(pa.float64())),
        ("mass", pa.list_(pa.float64())),
        ("positions", _STATES),
        ("velocities", _STATES),
        ("visible", pa.list_(pa.list_(pa.float64()))),
        ("contacts", pa.list_(_CONTACT)),
        ("occluder", pa.list_(pa.float64())),
        ("pusher", pa.list_(_PAIR)),
        ("actions", pa.list_(_PAIR)),
        ("transcript", pa.string()),
        ("voice", pa.string()),
        ("words", _SPEECH),
        ("phonemes", _SPEECH),
        ("mouth", pa.list_(_PAIR)),
    ]
)
_SCALARS = SCHEMA.names[:8]


def write_truth(path: str | Path, truths: Iterable[Truth]) -> None:
    """Write one row per clip, sorted by clip and seed. The same truths give the same bytes."""
    rows = [_to_row(truth) for truth in sorted(truths, key=lambda truth: (truth.clip, truth.seed))]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path, compression="zstd")


def read_truth(path: str | Path) -> list[Truth]:
    """Rows in file order. ValueError if a column is missing."""
    table = pq.read_table(path)
    missing = [name for name in SCHEMA.names if name not in table.column_names]
    if missing:
        raise ValueError(
            f"{path} is not a truth file: it lacks {', '.join(missing)}; "
            "give the truth.parquet that `worldmodel render` wrote"
        )
    return [_from_row(row) for row in table.to_pylist()]


def _to_row(truth: Truth) -> dict[str, Any]:
    return {name: getattr(truth, name) for name in _SCALARS} | {
        "materials": list(truth.materials),
        "colors": list(truth.colors),
        "radius": truth.radius_K.tolist(),
        "mass": truth.mass_K.tolist(),
        "positions": truth.positions_TK2.tolist(),
        "velocities": truth.velocities_TK2.tolist(),
        "visible": truth.visible_TK.tolist(),
        "contacts": [vars(contact) for contact in truth.contacts],
        "occluder": None if truth.occluder is None else list(truth.occluder),
        "pusher": None if truth.pusher_T2 is None else truth.pusher_T2.tolist(),
        "actions": None if truth.actions_T2 is None else truth.actions_T2.tolist(),
        "transcript": truth.transcript,
        "voice": truth.voice,
        "words": [vars(word) for word in truth.words],
        "phonemes": [vars(phoneme) for phoneme in truth.phonemes],
        "mouth": None if truth.mouth_T2 is None else truth.mouth_T2.tolist(),
    }


def _from_row(row: dict[str, Any]) -> Truth:
    num_frames, num_bodies = len(row["positions"]), len(row["radius"])
    return Truth(
        **{name: row[name] for name in _SCALARS},
        materials=tuple(row["materials"]),
        colors=tuple(row["colors"]),
        radius_K=np.array(row["radius"]),
        mass_K=np.array(row["mass"]),
        positions_TK2=np.array(row["positions"]).reshape(num_frames, num_bodies, 2),
        velocities_TK2=np.array(row["velocities"]).reshape(num_frames, num_bodies, 2),
        visible_TK=np.array(row["visible"]).reshape(num_frames, num_bodies),
        contacts=tuple(Contact(**contact) for contact in row["contacts"]),
        occluder=None if row["occluder"] is None else tuple(row["occluder"]),
        pusher_T2=None if row["pusher"] is None else np.array(row["pusher"]).reshape(-1, 2),
        actions_T2=None if row["actions"] is None else np.array(row["actions"]).reshape(-1, 2),
        transcript=row["transcript"],
        voice=row["voice"],
        words=tuple(SpeechEvent(**event) for event in row["words"]),
        phonemes=tuple(SpeechEvent(**event) for event in row["phonemes"]),
        mouth_T2=None if row["mouth"] is None else np.array(row["mouth"]).reshape(-1, 2),
    )
