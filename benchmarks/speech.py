"""The shipped `talker` on sentences that it never saw: is the sentence heard, and does the mouth go with it?

Clips from caption and transcript alone. wer_minus_codec: above the same recogniser's error on the true clips
through the codec; shuffled_minus_wer: below its error against another episode's sentence. lip_offset_ms:
later than in true clips.
"""

from __future__ import annotations

import json

from ray_jobs.bench import Measured
from ray_jobs.check_prompts import check_prompts_of
from ray_jobs.models import find_model
from worldmodel.load_config import dump_config
from worldmodel.model_folder import FACTS_FILE

MODEL, PROMPTS, SMOKE_PROMPTS = "talker", 96, 4


def run(smoke: bool) -> Measured:
    folder = find_model(MODEL)
    found, cfg = check_prompts_of(folder, clips=SMOKE_PROMPTS if smoke else PROMPTS)
    checks = found["checks"]
    words, lips = checks["word_error_rate"], checks["lip_offset"]
    facts = json.loads((folder / FACTS_FILE).read_text())
    return Measured(
        figures={
            "prompts": found["episodes"],
            "wer": words["value"],
            "wer_minus_codec": words["value"] - words["floor"],
            "shuffled_minus_wer": words["baselines"]["another_sentence"] - words["value"],
            "lip_offset_ms": lips["value"],
            "training_hours": facts["training minutes"] / 60,
        },
        raw=checks,
        n=found["episodes"],
        baseline={"codec": words["floor"], **words["baselines"], "fit_of_truth": lips["fit_of_truth"]},
        config=dump_config(cfg),
    )
