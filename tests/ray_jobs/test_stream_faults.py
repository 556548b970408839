"""A decoder that hangs or dies in an actor of a stream is one quarantined clip."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray

from avtok.media import Limits
from avtok.sandbox import SandboxedReader
from ray_jobs.accounting import Ledger
from ray_jobs.dataset import actor_dataset, iterate_rows
from ray_jobs.index import index_sources
from ray_jobs.plan import make_plan
from ray_jobs.stages import EncodeBatch, to_latent_batch


class FaultyActor(EncodeBatch):
    """Its decoder is stopped in the middle of `hangs.mp4`, as one that waits forever, and killed in
    `crashes.mp4`."""

    def __init__(self, plan_ref, cfg):
        super().__init__(ray.get(plan_ref), cfg)
        self.encoder.reader = FaultyReader(Limits(seconds=3.0))

    def __call__(self, row):
        made = super().__call__(row)
        left = [child.pid for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
        return made | {"num_decoders": len(left), "num_kills": self.encoder.reader.num_kills}


class FaultyReader(SandboxedReader):
    """A signal meets whichever process is about to read the file, fresh or not."""

    signal_now: signal.Signals | None = None

    def decode_clip(self, uri, **cut):
        self.signal_now = {"hangs.mp4": signal.SIGSTOP, "crashes.mp4": signal.SIGSEGV}.get(Path(uri).name)
        try:
            return super().decode_clip(uri, **cut)
        finally:
            self.signal_now = None

    def _running(self):
        child = super()._running()
        if self.signal_now:
            os.kill(child.process.pid, self.signal_now)
        return child


@pytest.fixture
def faulty_plan(clip_folder, tmp_path, cfg):
    names = ["first.mp4", "hangs.mp4", "crashes.mp4", "last.mp4"]
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes((clip_folder / f"bounce_{number}.mp4").read_bytes())
    lines = [json.dumps({"video": str(tmp_path / name)}) for name in names]
    (tmp_path / "clips.jsonl").write_text("\n".join(lines), "utf-8")
    index_sources([str(tmp_path / "clips.jsonl")], out=str(tmp_path / "m.parquet"))
    return make_plan(str(tmp_path / "m.parquet"), cfg)


@pytest.mark.ray
def test_a_decoder_that_hangs_or_dies_is_one_quarantined_clip_and_the_stream_goes_on(
    ray_cluster, faulty_plan, cfg
):
    ids = np.arange(faulty_plan.num_batches_per_epoch)
    arguments = {"plan_ref": ray.put(faulty_plan), "cfg": cfg}
    rows = list(iterate_rows(actor_dataset("global_index", ids, FaultyActor, arguments, 1)))
    batches = [to_latent_batch(row) for row in rows]
    ledger, clean = Ledger(faulty_plan.hash), EncodeBatch(faulty_plan, cfg)
    for batch in batches:
        ledger.add(batch.epoch, batch.sample_ids_B.tolist(), batch.reasons)
    ledger.position = len(rows)
    counts = ledger.accounting_dict(faulty_plan)
    assert (counts["planned"], counts["consumed"], counts["remaining"]) == (8, 4, 0)
    reasons = {bad["sample_id"]: bad["reason"] for bad in counts["quarantined"]}
    for sample_id, reason in reasons.items():
        name = Path(faulty_plan.sample(sample_id).uri).name
        said = {"hangs.mp4": "took longer than 3 s", "crashes.mp4": "its decoder died of SIGSEGV"}[name]
        assert said in reason
    assert len(reasons) == 4  # two cuts of each
    assert rows[-1]["num_kills"] >= 4
    assert rows[-1]["num_decoders"] <= 1  # those that were killed are gone
    for batch in batches:
        for place, sample_id in enumerate(batch.sample_ids_B.tolist()):
            if sample_id >= 0 and sample_id not in reasons:
                expected = clean.encode(sample_id).arrays["video"].astype(np.float32)
                assert np.array_equal(batch.video.latents[place].numpy(), expected)
