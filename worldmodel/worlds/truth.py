"""Exact truth of rendered clips: what moved where, and what touched what when. One Parquet row per clip."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

# T frames, K bodies; the last axis of 2 is x to the right and y down, as image columns and rows.

WALLS = ("left", "right", "top", "bottom")


@dataclass(frozen=True)
class Contact:
    """One body touching one wall, at a sub-step time; impulse in body masses x box widths per second."""

    time_s: float
    body: int
    wall: str
    impulse: float


@dataclass(frozen=True, eq=False)
class Truth:
    """Positions and radii in box widths, velocities in box widths/s; frame i is the state at i / fps s."""

    world: str
    seed: int
    fps: int
    sample_rate: int
    duration_s: float
    material: str
    caption: str
    radius_K: np.ndarray
    positions_TK2: np.ndarray
    velocities_TK2: np.ndarray
    contacts: tuple[Contact, ...]
    clip: str = ""

    @property
    def contact_times_s(self) -> np.ndarray:
        return np.array([contact.time_s for contact in self.contacts])


_STATES = pa.list_(pa.list_(pa.list_(pa.float64(), 2)))
_CONTACT = pa.struct(
    [("time_s", pa.float64()), ("body", pa.int32()), ("wall", pa.string()), ("impulse", pa.float64())]
)
SCHEMA = pa.schema(
    [
        ("clip", pa.string()),
        ("world", pa.string()),
        ("seed", pa.int64()),
        ("fps", pa.int32()),
        ("sample_rate", pa.int32()),
        ("duration_s", pa.float64()),
        ("material", pa.string()),
        ("caption", pa.string()),
        ("radius", pa.list_(pa.float64())),
        ("positions", _STATES),
        ("velocities", _STATES),
        ("contacts", pa.list_(_CONTACT)),
    ]
)


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
    return {
        "clip": truth.clip,
        "world": truth.world,
        "seed": truth.seed,
        "fps": truth.fps,
        "sample_rate": truth.sample_rate,
        "duration_s": truth.duration_s,
        "material": truth.material,
        "caption": truth.caption,
        "radius": truth.radius_K.tolist(),
        "positions": truth.positions_TK2.tolist(),
        "velocities": truth.velocities_TK2.tolist(),
        "contacts": [vars(contact) for contact in truth.contacts],
    }


def _from_row(row: dict[str, Any]) -> Truth:
    scalars = {name: row[name] for name in SCHEMA.names[:8]}
    num_bodies = len(row["radius"])
    return Truth(
        **scalars,
        radius_K=np.array(row["radius"]),
        positions_TK2=np.array(row["positions"]).reshape(-1, num_bodies, 2),
        velocities_TK2=np.array(row["velocities"]).reshape(-1, num_bodies, 2),
        contacts=tuple(Contact(**contact) for contact in row["contacts"]),
    )
