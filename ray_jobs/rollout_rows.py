"""What a row of rollouts.json shows, in the order in which a reader should see it."""

from __future__ import annotations

from typing import Any

UNTRAINED = "untrained"
ROLLOUTS_FILE = "rollouts.json"


def shown(row: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(key, title, file) of each clip: before training, after, other models, truth."""
    beside = dict(row.get("beside", {}))
    before = beside.pop(UNTRAINED, None)
    clips = [("untrained", "Before training", before)] if before else []
    clips.append(("rollout", "After training" if before else "Rollout", row["rollout"]))
    clips += [("other", f"Model {name}", file) for name, file in beside.items()]
    return [*clips, ("truth", "Truth", row["truth"])]
