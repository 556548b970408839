"""Self-Flow and its rivals on one world: held-out losses, probes, rollouts; paired by seed, with intervals.

Arms, sizes and seeds are in benchmarks/experiment/arms.py; all arms of a seed share data, their order, noise,
initial weights and the learning rate that was best for plain flow matching. Finished runs are filed with the
result, so the same command on another machine goes on; `--minutes` stops in time and files what there is.
`--manifest FOLDER` compares them on clips of one's own, of which no truth is known.

Prediction: at a million parameters and 1000 steps no arm beats flow matching at equal FLOPs in held-out loss
(public twins of this size were neutral or slightly worse); Self-Flow's probes at the student's layer are
above flow matching's; shuffled targets are worse than none. Outcome: so it is in loss; in the probe of
position at 0.2 and 2 million parameters, of velocity at 0.7 million; shuffled targets are not told from none.
At 2 million Self-Flow's rollouts are better than flow matching's at equal steps by the bounded error, which
was not foreseen; by the median, and at equal FLOPs, they are not told apart.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

from ray_jobs.bench import Measured
from ray_jobs.runtime_env import ROOT

if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from benchmarks.experiment.arms import CPU, SMOKE, TUNING_SEED, Tier, compared_runs, config_of, num_runs
from benchmarks.experiment.page import figures, page
from benchmarks.experiment.run_arms import run_experiment
from benchmarks.experiment.summary import statements, summarise
from worldmodel.load_config import dump_config

RUNS, OWN = "runs.jsonl", "-own"
WORKERS = 2


def run(smoke: bool, *, minutes: float = float("inf"), manifest: str | None = None) -> Measured:
    tier, variant = (SMOKE if smoke else CPU), OWN if manifest else ""
    out = ROOT / "runs" / f"objectives{variant}{'-smoke' if smoke else ''}"
    if manifest:
        from benchmarks.experiment.manifest_clips import prepare_manifest

        tier = replace(tier, world=None, manifest=manifest)
        any_run = compared_runs(tier, tier.sizes[0], tier.learning_rates[0])[0]
        out = prepare_manifest(manifest, config_of(tier, any_run), tier.held_out, out)
        tier = replace(tier, prepared=out)
    log: list[str] = []

    def say(line: str) -> None:
        log.append(line)
        print(line, file=sys.stderr, flush=True)

    results = run_experiment(tier, out, minutes=minutes, workers=WORKERS, say=say, known=filed_runs(variant))
    return replace(measured(tier, results, log), variant=variant)


def measured(tier: Tier, results: list[dict[str, Any]], log: list[str]) -> Measured:
    """What is said of the runs that there are, and a page of it."""
    tuned = [r for r in results if r["seed"] == TUNING_SEED]
    planned = num_runs(tier)
    rates = sorted({(r["size"], r["learning_rate"]) for r in results if r["seed"] != TUNING_SEED})
    summary = summarise(tier, results)
    pictures = figures(tier, results, summary)
    among = ", ".join(f"{r:g}" for r in sorted(tier.learning_rates))
    chosen = ", ".join(f"{rate:g} at {size}" for size, rate in rates)
    facts = [
        f"{len(results)} of {planned} runs are done; {tier.world or tier.manifest}, {tier.steps} steps",
        f"learning rates {chosen}: the best of {among} for flow matching at that size",
        "differences are paired by seed; intervals are Student's t, 95 %",
    ]
    diverged = [f"{r['size']}/{r['arm']}/seed{r['seed']}" for r in results if "diverged" in r]
    facts += [f"diverged and not compared: {', '.join(diverged)}"] if diverged else []
    claims = statements(tier, results)
    lines = "".join(json.dumps(result, sort_keys=True) + "\n" for result in results)
    first = compared_runs(tier, tier.sizes[0], rates[0][1] if rates else tier.learning_rates[0])[0]
    return Measured(
        figures={"arms": summary, "runs": len(results), "planned": planned, "statements": claims},
        raw={"tuning": [[r["size"], r["learning_rate"], r.get("loss")] for r in tuned], "diverged": diverged},
        n=len(tier.seeds),
        config=dump_config(config_of(tier, first)),
        log="\n".join([*log, *claims]) + "\n",
        files={
            **pictures,
            "page.html": page(tier, results, summary, pictures, facts).encode(),
            RUNS: lines.encode(),
        },
    )


def filed_runs(variant: str = "") -> list[dict[str, Any]]:
    """Of the last result that was filed."""
    folders = sorted((ROOT / "benchmarks" / "results").glob(f"*_objectives{variant}/{RUNS}"))
    return [json.loads(line) for line in folders[-1].read_text("utf-8").splitlines()] if folders else []
