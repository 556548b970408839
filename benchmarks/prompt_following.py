"""Does the shipped `bounce` show what a prompt says: colours, count, materials, directions?

Clips from captions of unseen episodes alone; `chance` is the same against the other episodes' captions,
and of directions against all four in turn.
"""

from __future__ import annotations

from ray_jobs.bench import Measured
from ray_jobs.check_prompts import check_prompts_of
from ray_jobs.models import find_model
from worldmodel.load_config import dump_config

MODEL, PROMPTS, SMOKE_PROMPTS = "bounce", 96, 4


def run(smoke: bool) -> Measured:
    checked, cfg = check_prompts_of(find_model(MODEL), clips=SMOKE_PROMPTS if smoke else PROMPTS)
    found = checked["checks"]["prompt_following"]
    return Measured(
        figures={name: found[name] for name in ("factors", "accuracy", "chance")},
        raw=found,
        n=found["episodes"],
        baseline={"codec": found["codec"], "chance": found["chance"]},
        config=dump_config(cfg),
    )
