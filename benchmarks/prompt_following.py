"""Does the shipped `bounce` show what a prompt says: colours, count, materials, directions?

Clips from captions of unseen episodes alone; `chance` is the same against the other episodes' captions.
"""

from __future__ import annotations

from avtok.load import load_codec
from ray_jobs.bench import Measured
from ray_jobs.models import find_model
from worldmodel.checks.follow import prompt_following
from worldmodel.checks.of_prompts import from_prompts
from worldmodel.export import codecs_of, load_model
from worldmodel.load_config import dump_config

MODEL, WORLD, EPISODES = "bounce", "bounce", 96
FIRST_SEED = 3_000_000_000


def run(smoke: bool) -> Measured:
    folder = find_model(MODEL)
    model, cfg, _ = load_model(folder)
    video, audio = map(load_codec, codecs_of(folder, cfg))
    seeds = range(FIRST_SEED, FIRST_SEED + (4 if smoke else EPISODES))
    prompted = from_prompts(model, cfg, video, audio, world=WORLD, seeds=seeds)
    found = prompt_following(prompted, sample_rate=cfg.data.sample_rate)
    return Measured(
        figures={name: found[name] for name in ("factors", "accuracy", "chance")},
        raw=found,
        n=len(seeds),
        baseline={"codec": found["codec"], "chance": found["chance"]},
        config=dump_config(cfg),
    )
