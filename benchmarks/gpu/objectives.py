"""`worldmodel bench objectives` on one GPU, at sizes that a CPU cannot train.

    export PYTHONPATH=.:tokenizers
    python benchmarks/gpu/objectives.py --out runs/objectives --minutes 600    # --smoke: on a CPU

Imports only worldmodel and avtok. The same command goes on where it was stopped; OUT/page.html and
OUT/summary.json are written of the runs that are done.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.experiment.arms import GPU, SMOKE
from benchmarks.experiment.page import figures, page
from benchmarks.experiment.run_arms import run_experiment
from benchmarks.experiment.summary import statements, summarise


def main() -> None:
    """See the module's first lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after this long")
    parser.add_argument("--smoke", action="store_true")
    given = parser.parse_args()
    tier = SMOKE if given.smoke else GPU
    results = run_experiment(
        tier, given.out, minutes=given.minutes, workers=1, say=lambda line: print(line, flush=True)
    )
    summary = summarise(tier, results)
    if not summary:
        return
    pictures = figures(tier, results, summary)
    facts = [f"{len(results)} runs; {tier.world}, {tier.steps} steps"]
    (given.out / "page.html").write_text(page(tier, results, summary, pictures, facts), "utf-8")
    (given.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", "utf-8")
    print("\n".join(statements(tier, results)))


if __name__ == "__main__":
    main()
