"""The ledger: which samples were trained on, which could not be, and where the stream stands.

At every commit plan = consumed + quarantined + remaining, pairwise disjoint, in every epoch. Each rank keeps
a ledger of what it consumed since its worker group started; rank 0 begins with what was committed before.
A commit is all of them.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pyroaring import BitMap64

from ray_jobs.errors import JobError
from ray_jobs.plan import PADDING, Plan
from worldmodel.reasons import DAMAGED_COMMIT

SHOWN_IDS = 5


@dataclass
class Ledger:
    """position: global index of the next micro-batch. consumed and quarantined are by epoch."""

    plan_hash: str
    position: int = 0
    consumed: dict[int, BitMap64] = field(default_factory=lambda: defaultdict(BitMap64))
    quarantined: dict[int, dict[int, str]] = field(default_factory=lambda: defaultdict(dict))

    def add(self, epoch: int, sample_ids: Iterable[int], reasons: dict[int, str]) -> None:
        """Enter one trained micro-batch. JobError if a sample was trained on before in this epoch."""
        ids = BitMap64([int(i) for i in sample_ids if i != PADDING])
        if not ids:
            return  # an empty micro-batch
        bad = {int(i): reason for i, reason in reasons.items()}
        _refuse(f"epoch {epoch}: trained on twice", ids & self._entered(epoch))
        _refuse(f"epoch {epoch}: quarantined without being in the micro-batch", BitMap64(list(bad)) - ids)
        self.consumed[epoch] |= ids - BitMap64(list(bad))
        if bad:
            self.quarantined[epoch].update(bad)

    def epochs(self) -> list[int]:
        return sorted(
            {e for e, ids in self.consumed.items() if ids} | {e for e, bad in self.quarantined.items() if bad}
        )

    def quarantine_rate(self, plan: Plan) -> float:
        """Quarantined as a fraction of the planned, not of the seen: one early bad clip is no verdict.
        Forgotten clips are none."""
        forgotten = set(plan.forgotten_ids.tolist())
        return len(set(self._all_quarantined()) - forgotten) / plan.num_train

    def check_rate(self, plan: Plan, max_rate: float) -> None:
        """JobError if more clips are bad than the configuration allows."""
        rate = self.quarantine_rate(plan)
        if rate > max_rate:
            bad = self._all_quarantined()
            first = next(iter(bad))
            raise JobError(
                f"{len(bad)} of {plan.num_train} clips are quarantined ({rate:.0%}), "
                f"data.max_quarantine_rate is {max_rate:.0%}; first: {plan.sample(first).uri}: {bad[first]}"
            )

    def check(self, plan: Plan) -> None:
        """JobError unless just what lies before the position was consumed or quarantined, once an epoch."""
        if self.plan_hash != plan.hash:
            raise JobError(
                f"the ledger belongs to plan {self.plan_hash}, this is plan {plan.hash}; "
                "use the manifest and data settings of the run, or another run name"
            )
        before = {
            epoch: BitMap64(ids.tolist()) for epoch, ids in plan.sample_ids_before(self.position).items()
        }
        for epoch in sorted(set(before) | set(self.epochs())):
            planned, entered = before.get(epoch, BitMap64()), self._entered(epoch)
            where = f"epoch {epoch}, position {self.position}"
            _refuse(f"{where}: both consumed and quarantined", self._consumed(epoch) & self._bad(epoch))
            _refuse(f"{where}: before the position, but neither consumed nor quarantined", planned - entered)
            _refuse(f"{where}: consumed, but not before the position", entered - planned)

    def to_files(self, folder: str | Path, *, rank: int) -> None:
        """Write `ledger-<rank>.json` and `ledger-<rank>.roaring` (one bitmap an epoch, end to end)."""
        for name, content in self.files(rank=rank).items():
            (Path(folder) / name).write_bytes(content)

    def files(self, *, rank: int) -> dict[str, bytes]:
        """What `to_files` writes, by name: the ledger as it is now."""
        blobs = {epoch: self._consumed(epoch).serialize() for epoch in self.epochs()}
        about: dict[str, Any] = {
            "plan_hash": self.plan_hash,
            "position": self.position,
            "consumed_bytes": {str(epoch): len(blob) for epoch, blob in blobs.items()},
            "quarantined": {
                str(e): {str(i): why for i, why in self.quarantined.get(e, {}).items()} for e in blobs
            },
        }
        whole = b"".join(blobs.values())
        about["consumed_sha256"] = hashlib.sha256(whole).hexdigest()
        return {
            f"ledger-{rank:05d}.roaring": whole,
            f"ledger-{rank:05d}.json": json.dumps(about).encode("utf-8"),
        }

    @classmethod
    def from_files(cls, folder: str | Path) -> Ledger:
        """The ledger of a commit: all ranks' files, merged. JobError if there are none or they disagree."""
        files = sorted(Path(folder).glob("ledger-*.json"))
        if not files:
            raise JobError(
                f"{folder}: holds no ledger-*.json, so what was consumed is unknown; {DAMAGED_COMMIT}"
            )
        return merge([cls._from_file(file) for file in files])

    def accounting_dict(self, plan: Plan) -> dict[str, Any]:
        """accounting.json: the whole run (a sample counts once, as quarantined if it ever was) and epochs."""
        bad = self._all_quarantined()
        consumed = BitMap64()
        for epoch in self.epochs():
            consumed |= self._consumed(epoch)
        consumed -= BitMap64(list(bad))
        return {
            "planned": plan.num_train,
            "consumed": len(consumed),
            "quarantined": [
                {"sample_id": i, "uri": plan.sample(i).uri, "reason": reason}
                for i, reason in sorted(bad.items())
            ],
            "remaining": plan.num_train - len(consumed) - len(bad),
            "held_out": len(plan.held_out_ids),
            "position": self.position,
            "plan_hash": self.plan_hash,
            "epochs": [self._epoch_dict(epoch, plan) for epoch in self.epochs()],
        }

    def _epoch_dict(self, epoch: int, plan: Plan) -> dict[str, int]:
        consumed, bad = len(self._consumed(epoch)), len(self._bad(epoch))
        return {
            "epoch": epoch,
            "planned": plan.num_train,
            "consumed": consumed,
            "quarantined": bad,
            "remaining": plan.num_train - consumed - bad,
        }

    def _consumed(self, epoch: int) -> BitMap64:
        return self.consumed.get(epoch, BitMap64())

    def _bad(self, epoch: int) -> BitMap64:
        return BitMap64(list(self.quarantined.get(epoch, {})))

    def _entered(self, epoch: int) -> BitMap64:
        return self._consumed(epoch) | self._bad(epoch)

    def _all_quarantined(self) -> dict[int, str]:
        return {i: why for _, bad in sorted(self.quarantined.items()) for i, why in bad.items()}

    @classmethod
    def _from_file(cls, file: Path) -> Ledger:
        try:
            return cls._parsed(file)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            missing = isinstance(error, FileNotFoundError)
            problem = "missing" if missing else f"damaged or cut short ({type(error).__name__}: {error})"
            where = getattr(error, "filename", None) or file
            raise JobError(f"{where}: {problem}; {DAMAGED_COMMIT}") from None

    @classmethod
    def _parsed(cls, file: Path) -> Ledger:
        about = json.loads(file.read_text("utf-8"))
        blob = file.with_suffix(".roaring").read_bytes()
        ledger = cls(plan_hash=about["plan_hash"], position=about["position"])
        ends = np.cumsum(list(about["consumed_bytes"].values()), dtype=int).tolist()
        if len(blob) != (ends[-1] if ends else 0):
            said = ends[-1] if ends else 0
            raise JobError(
                f"{file.with_suffix('.roaring')}: {len(blob)} bytes, its .json says {said}; {DAMAGED_COMMIT}"
            )
        digest = hashlib.sha256(blob).hexdigest()
        if about.get("consumed_sha256", digest) != digest:  # older ones have none
            raise JobError(f"{file.with_suffix('.roaring')}: changed since it was written; {DAMAGED_COMMIT}")
        for epoch, begin, end in zip(about["consumed_bytes"], [0, *ends], ends, strict=False):
            ledger.consumed[int(epoch)] = BitMap64.deserialize(blob[begin:end])
        for epoch, bad in about["quarantined"].items():
            ledger.quarantined[int(epoch)] = {int(i): why for i, why in bad.items()}
        return ledger


def merge(ledgers: list[Ledger]) -> Ledger:
    """One ledger of all ranks'. JobError if positions or plans differ, or if two ranks share a sample."""
    merged = Ledger(ledgers[0].plan_hash, ledgers[0].position)
    for ledger in ledgers:
        if (ledger.plan_hash, ledger.position) != (merged.plan_hash, merged.position):
            raise JobError(
                f"ranks disagree: plan {ledger.plan_hash} position {ledger.position} "
                f"and plan {merged.plan_hash} position {merged.position}"
            )
        for epoch in ledger.epochs():
            reasons = ledger.quarantined.get(epoch, {})
            merged.add(epoch, [*ledger._consumed(epoch), *reasons], reasons)
    return merged


def _refuse(what: str, ids: BitMap64) -> None:
    if ids:
        shown = ", ".join(str(i) for i in ids[:SHOWN_IDS])
        raise JobError(f"{what}: {len(ids)} samples ({shown}{', ...' if len(ids) > SHOWN_IDS else ''})")
