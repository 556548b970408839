"""From runs to statements: means, paired differences to plain flow matching, and when its end is reached."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.experiment.arms import ARMS, PLAIN, SELF_FLOW, TUNING_SEED, Run, Tier, config_of
from benchmarks.experiment.paired import Interval, interval, paired
from worldmodel.self_flow import layers_of

Result = dict[str, Any]
PROBED_T = "0.5"  # of the probes that are compared
PAIRS = [(SELF_FLOW, other) for other in (PLAIN, "flow_matching_flops", "dual", "sra", "shuffled")]
PAIRS += [(arm, PLAIN) for arm in ARMS if arm not in (PLAIN, SELF_FLOW)]
CLAIMED = (
    "loss",
    "probe_position",
    "probe_velocity",
    "probe_material",
    "probe_sounded",
    "frechet_video",
    "position_error",
    "position_error_median",
)
FOLLOWED = ("cosine_video", "cosine_audio", "teacher_rank_video", "teacher_rank_audio")


@dataclass(frozen=True)
class Metric:
    """value: of a result and its student layer; NaN where it was not measured."""

    title: str
    lower_is_better: bool
    value: Callable[[Result, int], float]


def _probe(factor: str) -> Callable[[Result, int], float]:
    return lambda result, layer: (
        result.get("probes", {}).get(factor, {}).get(PROBED_T, {layer: math.nan})[layer]
    )


def _in(part: str, name: str) -> Callable[[Result, int], float]:
    return lambda result, _: _number(result[part].get(name))


METRICS = {
    "loss": Metric("held-out loss", True, lambda result, _: result["loss"]),
    "picture_after_past": Metric("picture error, clean past", True, _in("of_the_past", "with_history")),
    "sound_after_picture": Metric(
        "sound error, clean past and picture", True, _in("of_the_past", "sound_with_picture")
    ),
    "probe_position": Metric("probe: position, R²", False, _probe("position")),
    "probe_velocity": Metric("probe: velocity, R²", False, _probe("velocity")),
    "probe_material": Metric("probe: material, from sound tokens", False, _probe("material")),
    "probe_sounded": Metric(
        "probe: material that sounded or none, from picture tokens", False, _probe("sounded")
    ),
    "frechet_video": Metric("Fréchet distance, picture", True, _in("rollouts", "frechet_video")),
    "frechet_audio": Metric("Fréchet distance, sound", True, _in("rollouts", "frechet_audio")),
    "position_error": Metric(
        "rollout: position error at 0.25 s, at most a frozen frame's", True, _in("rollouts", "position_error")
    ),
    "position_error_median": Metric(
        "rollout: median position error at 0.25 s, unbounded", True, _in("rollouts", "position_error_median")
    ),
    "onset_f1_gain": Metric("rollout: onset F1 over another clip's", False, _in("rollouts", "onset_f1_gain")),
}


def summarise(tier: Tier, results: list[Result]) -> dict[str, Any]:
    """{size: {arm: {title, n, metrics: {name: mean, low, high, minus_plain}, reaches_plain, followed}}}.
    followed: of what features follow, at the end, a number a seed."""
    summary: dict[str, Any] = {}
    for size, arms in ((size.name, size.arms) for size in tier.sizes):
        by_arm = {arm: compared(results, size, arm) for arm in arms}
        plain = by_arm[PLAIN]
        layer = student_layer(tier, size)
        summary[size] = {
            arm: {
                "title": ARMS[arm].title,
                "n": len(runs),
                "metrics": {name: _metric(metric, runs, plain, layer) for name, metric in METRICS.items()},
                "reaches_plain": _reaches(runs, plain),
                "followed": {name: [r["features"][name] for r in runs.values()] for name in FOLLOWED}
                if all(r["features"]["cosine_video"] for r in runs.values())
                else None,
            }
            for arm, runs in by_arm.items()
            if runs
        }
    return {size: arms for size, arms in summary.items() if arms}


def compared(results: list[Result], size: str, arm: str) -> dict[int, Result]:
    """By seed; runs that chose the learning rate, and those that diverged, are not compared."""
    mine = [
        r
        for r in results
        if (r["size"], r["arm"]) == (size, arm) and r["seed"] != TUNING_SEED and "diverged" not in r
    ]
    return {result["seed"]: result for result in mine}


def student_layer(tier: Tier, size: str) -> int:
    cfg = config_of(tier, Run(size, SELF_FLOW, 0, tier.learning_rates[0]))
    return layers_of(cfg.objective, cfg.model.depth)[0]


def statements(tier: Tier, results: list[Result]) -> list[str]:
    """What may be said, each with its interval. A claim needs an interval that excludes zero."""
    found = list(_differences(tier, results))
    lines = [f"{what}: {said(d, lower_is_better=metric.lower_is_better)}" for what, metric, d in found]
    shown = [d for _, _, d in found if math.isfinite(d.low)]
    return [*lines, by_chance(shown)] if shown else lines


def by_chance(shown: list[Interval]) -> str:
    """How many intervals exclude zero, beside how many would if no two arms differed."""
    apart = sum(d.excludes_zero for d in shown)
    by_luck = f"{0.05 * len(shown):.1f} would if no two arms differed"
    return f"{apart} of these {len(shown)} intervals exclude zero; {by_luck}"


def _differences(tier: Tier, results: list[Result]) -> Iterator[tuple[str, Metric, Interval]]:
    """What is compared, its metric and the difference, size by size and pair by pair."""
    for size in (size.name for size in tier.sizes):
        layer = student_layer(tier, size)
        for ours, theirs in PAIRS:
            arms = [compared(results, size, arm) for arm in (ours, theirs)]
            for metric in (METRICS[name] for name in CLAIMED):
                values = [{seed: metric.value(r, layer) for seed, r in runs.items()} for runs in arms]
                if difference := paired(*values):
                    yield (
                        f"{size}: {ARMS[ours].title} minus {ARMS[theirs].title}, {metric.title}",
                        metric,
                        difference,
                    )


def said(difference: Interval, *, lower_is_better: bool) -> str:
    if not math.isfinite(difference.low):
        return f"{difference.mean:+.4f}, one seed: no interval, no claim"
    numbers = f"{difference.mean:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}], {difference.n} seeds"
    if not difference.excludes_zero:
        return f"{numbers}: no difference shown"
    return f"{numbers}: {'better' if (difference.high < 0) == lower_is_better else 'worse'}"


def _metric(metric: Metric, runs: dict[int, Result], plain: dict[int, Result], layer: int) -> dict[str, Any]:
    ours, theirs = ({seed: metric.value(r, layer) for seed, r in part.items()} for part in (runs, plain))
    measured = [value for value in ours.values() if math.isfinite(value)]
    difference = paired(ours, theirs) if runs is not plain else None
    return {
        **(_finite(interval(measured)) if measured else {"mean": None}),
        "minus_plain": _finite(difference) if difference else None,
    }


def _reaches(runs: dict[int, Result], plain: dict[int, Result]) -> dict[str, Any]:
    """When each seed's curve first is where plain flow matching's ended, over all of its steps and FLOPs.
    None for one that never is."""
    steps, flops = {}, {}
    for seed in sorted(runs.keys() & plain.keys()):
        base, ours = plain[seed], runs[seed]
        step = first_below(ours["curve"], base["curve"][-1][1])
        steps[seed] = None if step is None else step / base["steps"]
        per_step = ours["flops_per_step"] / base["flops_per_step"]
        flops[seed] = None if step is None else steps[seed] * per_step
    return {"steps_over_plain": list(steps.values()), "flops_over_plain": list(flops.values())}


def first_below(curve: list[list[float]], value: float) -> float | None:
    """The step at which a curve of [step, loss] first is at or below a value; straight between its points."""
    before: list[float] | None = None
    for step, loss in curve:
        if loss <= value:
            if before is None:
                return step
            return before[0] + (step - before[0]) * (before[1] - value) / (before[1] - loss)
        before = [step, loss]
    return None


def _finite(found: Interval) -> dict[str, Any]:
    """For JSON, which knows no infinity: null."""
    return {k: v if math.isfinite(v) else None for k, v in asdict(found).items()}


def _number(value: float | None) -> float:
    return math.nan if value is None else value
