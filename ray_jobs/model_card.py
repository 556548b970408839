"""What a run says of its model: facts for the card beside the weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from worldmodel.config import RunConfig
from worldmodel.config_objective import SelfFlowConfig

FOLLOWED = {
    "none": "flow matching",
    "ema": "EMA teacher",
    "layersync": "LayerSync",
    "repa": "REPA (frozen encoders)",
    "velocity_heads": "velocity heads",
}
SEEN = {"offset": "SRA (EMA teacher, t less an offset)", "same": "EMA teacher at the same noise levels"}


def objective_words(cfg: SelfFlowConfig) -> str:
    """What was trained for, in words: Self-Flow is two noise levels and a teacher at the cleaner one."""
    teacher = cfg.rep == "ema"
    named = SEEN.get(cfg.teacher_t, FOLLOWED[cfg.rep]) if teacher else FOLLOWED[cfg.rep]
    is_self_flow = teacher and cfg.dual and cfg.teacher_t == "min"
    words = ["Self-Flow (EMA teacher)" if is_self_flow else named]
    if cfg.dual and not is_self_flow:
        words.append("two noise levels")
    if teacher and not cfg.dual and cfg.teacher_t == "min":
        words.append("one noise level")
    if cfg.teacher_shuffled:
        words.append("features of another clip (control)")
    if cfg.attention_separation:
        words.append("attention apart")
    return ", ".join(words)


def card_facts(run: Path, cfg: RunConfig, step: int) -> dict[str, Any]:
    """From the run's own files; what is not there is left out."""
    rows = _rows(run / "metrics.jsonl")
    facts = {
        "steps": step,
        "seed": cfg.seed,
        "objective": objective_words(cfg.objective),
        "begun from": cfg.train.init,
        "trained on": _clips(_json(run / "accounting.json")),
        "sources": ", ".join(source.name for source in cfg.data.mixture),
        "held-out error": _held_out(rows, step),
        "training": _time(rows, cfg),
        "made with": _versions(_json(run / "run.json")),
    }
    return {name: fact for name, fact in facts.items() if fact not in ("", None)}


def _clips(accounting: dict[str, Any]) -> str:
    if not accounting:
        return ""
    bad = len(accounting["quarantined"])
    return (
        f"{accounting['consumed']} of {accounting['planned']} clips"
        + (f", {bad} could not be used" if bad else "")
        + f", {accounting['held_out']} held out"
    )


def _held_out(rows: list[dict[str, Any]], step: int) -> str:
    """Squared error of the velocity, all tokens at one noise level, of the last evaluation until `step`."""
    found = [row for row in rows if "eval_video" in row or "eval_audio" in row if row["step"] <= step]
    if not found:
        return ""
    last, names = found[-1], {"eval_video": "picture", "eval_audio": "sound"}
    numbers = [f"{word} {last[name]:.4g}" for name, word in names.items() if name in last]
    return f"{', '.join(numbers)} after {last['step']:.0f} steps"


def _time(rows: list[dict[str, Any]], cfg: RunConfig) -> str:
    seconds = {int(row["step"]): row["step_s"] for row in rows if "step_s" in row}
    return f"{sum(seconds.values()) / 60:.1f} minutes on {cfg.train.workers} workers" if seconds else ""


def _versions(facts: dict[str, Any]) -> str:
    if not facts:
        return ""
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    return versions + (f"; worldmodel {facts['git'][:12]}" if facts["git"] else "")


def _rows(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8")) if path.exists() else {}
