"""The shipped `talker` on sentences that it never saw: is the sentence heard, and does the mouth go with it?

Clips from caption and transcript alone. wer_minus_codec: above the same recogniser's error on the true clips
through the codec; shuffled_minus_wer: below its error against another episode's sentence. lip_offset_ms:
later than in true clips.
"""

from __future__ import annotations

import json

from avtok.load import load_codec
from ray_jobs.bench import Measured
from ray_jobs.models import find_model
from worldmodel.checks.of_prompts import from_prompts
from worldmodel.checks.result import without_nan
from worldmodel.checks.speaking import speech_checks
from worldmodel.export import codecs_of, load_model
from worldmodel.load_config import dump_config
from worldmodel.model_folder import FACTS_FILE

MODEL, WORLD, EPISODES = "talker", "talker", 96
FIRST_SEED = 3_000_000_000


def run(smoke: bool) -> Measured:
    folder = find_model(MODEL)
    model, cfg, _ = load_model(folder)
    video, audio = map(load_codec, codecs_of(folder, cfg))
    seeds = range(FIRST_SEED, FIRST_SEED + (4 if smoke else EPISODES))
    prompted = from_prompts(model, cfg, video, audio, world=WORLD, seeds=seeds)
    checks = without_nan(speech_checks(prompted, fps=cfg.data.fps, sample_rate=cfg.data.sample_rate))
    words, lips = checks["word_error_rate"], checks["lip_offset"]
    facts = json.loads((folder / FACTS_FILE).read_text())
    return Measured(
        figures={
            "prompts": len(seeds),
            "wer": words["value"],
            "wer_minus_codec": words["value"] - words["floor"],
            "shuffled_minus_wer": words["baselines"]["another_sentence"] - words["value"],
            "lip_offset_ms": lips["value"],
            "training_hours": facts["training minutes"] / 60,
        },
        raw=checks,
        n=len(seeds),
        baseline={"codec": words["floor"], **words["baselines"], "fit_of_truth": lips["fit_of_truth"]},
        config=dump_config(cfg),
    )
