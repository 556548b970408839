"""A job whose node has gone says what it waits for."""

from __future__ import annotations

from ray_jobs.waiting import QUIET_S, Waiting
from worldmodel.config import RunConfig

CFG = RunConfig.model_validate({"train": {"workers": 4, "device": "cuda"}, "data": {"decode_actors": 2}})
WHOLE, LEFT = {"CPU": 16.0, "GPU": 4.0}, {"CPU": 8.0, "GPU": 2.0}


def test_a_job_that_waits_for_a_lost_node_says_so_once_and_again_after_it_went_on():
    now, have = [0.0], [WHOLE]
    waiting = Waiting(CFG, lambda: have[0], lambda: now[0])

    def notes(seconds: float, *, has_news: bool = False) -> list[str]:
        found = []
        for _ in range(int(seconds)):
            now[0] += 1
            if note := waiting.note(has_news=has_news):
                found.append(note)
        return found

    assert notes(10 * QUIET_S) == []  # it compiles, or waits for data: nothing is missing
    have[0] = LEFT
    assert notes(10 * QUIET_S, has_news=True) == []
    (note,) = notes(10 * QUIET_S)
    assert note.startswith("waits until nodes are back (too few GPUs: train.workers=4, the cluster has 2); ")
    have[0] = WHOLE
    assert notes(5, has_news=True) == []
    have[0] = LEFT
    assert len(notes(2 * QUIET_S)) == 1
