"""The shipped world model on episodes that it never saw: how long it is right, does sound fit, what hides.

Rollouts of 2 s after 1 s of world `bounce`; nvpt is the time until a body is further off than its radius,
over what is possible (the length of the rollout, or what physics allows).
"""

from __future__ import annotations

import hashlib
import json

from avtok.load import load_codec
from ray_jobs.bench import Measured
from ray_jobs.models import find_model
from worldmodel.checks.of_model import check_model
from worldmodel.export import codecs_of, load_model
from worldmodel.load_config import dump_config
from worldmodel.model_folder import FACTS_FILE, WEIGHTS

MODEL, WORLD, EPISODES, SECONDS = "bounce", "bounce", 96, 2.0
FIRST_SEED = 3_000_000_000


def run(smoke: bool) -> Measured:
    folder = find_model(MODEL)
    model, cfg, _ = load_model(folder)
    rollout = cfg.rollout.model_copy(update={"seconds": SECONDS})
    cfg = cfg.model_copy(update={"rollout": rollout})
    seeds = range(FIRST_SEED, FIRST_SEED + (4 if smoke else EPISODES))
    video, audio = map(load_codec, codecs_of(folder, cfg))
    result = check_model(model, cfg, video, audio, world=WORLD, seeds=seeds)
    checks = result["checks"]
    weights = (folder / "transformer" / WEIGHTS).read_bytes()
    facts = json.loads((folder / FACTS_FILE).read_text())
    return Measured(
        figures={
            "model": MODEL,
            "hash": hashlib.sha256(weights).hexdigest()[:16],
            "training_hours": facts["training minutes"] / 60,
            "nvpt": checks["valid_prediction_time"].get("value"),
            "sound_lag_ms": checks["contact_sound_lag"].get("value"),
            "permanence": checks["permanence"].get("value"),
            "episodes": result["episodes"],
            "position_error_025s_over_frozen": result["position_error_025s_over_frozen"],
            "onset_f1_gain_ci_low": result["onset_f1_gain_ci_low"],
        },
        raw=result,
        n=result["episodes"],
        baseline={name: check.get("baselines") for name, check in checks.items()},
        config=dump_config(cfg),
    )
