"""Rows of a manifest through the filters that are on: facts first, then one look at what is left."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from avtok.media import Limits
from ray_jobs.errors import UserError
from ray_jobs.filters.drift import drifts
from ray_jobs.filters.duplicates import first_of_each, print_of
from ray_jobs.filters.look import Look, LookTask, can_hash, look_at
from ray_jobs.filters.shots import NEEDS_EXTRA, require_shots, shots_of
from ray_jobs.filters.silent import is_silent
from ray_jobs.filters.size import too_small
from ray_jobs.filters.still import is_black, is_static
from ray_jobs.probing import in_tasks
from worldmodel.config import FilterConfig

Row = dict[str, Any]
Reason = dict[str, str]  # uri, reason
Progress = Callable[[int, int], None]
SPAN_SLACK_S = 0.1  # a row that leaves out less of its file than this is the whole of it


def filtered(
    rows: list[Row],
    cfg: FilterConfig,
    *,
    limits: Limits | None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> tuple[list[Row], list[Reason]]:
    """Rows that stay, split into shots where cfg.shots, and what was dropped and why.

    Whenever pictures are looked at, near-duplicates get one `group`, so that a split does not part them.
    """
    if cfg.shots:
        require_shots()
    if "duplicate" in cfg.drop and not can_hash():
        raise UserError(NEEDS_EXTRA.format(what="--drop duplicate", library="imagehash"))
    dropped: list[Reason] = []
    rows = _kept(rows, dropped, partial(_by_facts, cfg=cfg))
    tasks = [_task(row, cfg, limits) for row in rows]
    looks: list[Look | None] = [None] * len(rows)
    wanted = [i for i, task in enumerate(tasks) if task is not None]
    some = [task for task in tasks if task is not None]
    for done, (i, look) in enumerate(in_tasks(some, look_at, workers=workers), start=1):
        row = rows[wanted[i]]
        # a crash of the worker is a dictionary with its reason
        looks[wanted[i]] = (
            look if isinstance(look, Look) else Look(row["start_s"], row["end_s"], reason=look["reason"])
        )
        if progress:
            progress(done, len(some))
    seen = [part for row, look in zip(rows, looks, strict=True) for part in _parts(row, look, cfg, dropped)]
    return _without_duplicates(seen, cfg, dropped), dropped


def _by_facts(row: Row, cfg: FilterConfig) -> str:
    """Why a row is dropped for what the probe found, or nothing."""
    reason = too_small(row, min_side=cfg.min_side)
    if not reason and cfg.max_drift_s is not None:
        reason = drifts(row, max_drift_s=cfg.max_drift_s)
    if not reason and "silent" in cfg.drop and (not row["has_sound"] or not _hears_span(row, cfg)):
        reason = is_silent(row, None)
    return reason


def _hears_span(row: Row, cfg: FilterConfig) -> bool:
    """Whether silence is asked of a part of the file, which its facts do not tell."""
    left_out_s = row["duration_s"] - (row["end_s"] - row["start_s"])
    return "silent" in cfg.drop and (cfg.shots or left_out_s > SPAN_SLACK_S)


def _task(row: Row, cfg: FilterConfig, limits: Limits | None) -> LookTask | None:
    looks = cfg.shots or bool({"static", "black", "duplicate"} & set(cfg.drop))
    pictures, hashes = row["has_video"] and looks, looks and can_hash()
    sound = row["has_sound"] and (hashes or _hears_span(row, cfg))
    if not pictures and not sound:
        return None
    return LookTask(
        uri=row["uri"],
        audio_uri=row["audio_uri"],
        start_s=row["start_s"],
        end_s=row["end_s"],
        has_video=pictures,
        has_sound=sound,
        shots=cfg.shots and row["duration_s"] > 0,
        hashes=hashes,
        sound=sound,
        limits=limits,
    )


def _parts(
    row: Row, look: Look | None, cfg: FilterConfig, dropped: list[Reason]
) -> list[tuple[Row, Look | None]]:
    """The row, or its shots, that the looks let pass."""
    if look is None:
        return [(row, None)]
    if look.reason:
        dropped.append({"uri": row["uri"], "reason": look.reason})
        return []
    shots, short = shots_of(row, look.cuts_s, min_shot_s=cfg.min_shot_s)
    dropped += short
    parts = []
    for shot in shots:
        part = look if shot is row else look.between(shot["start_s"], shot["end_s"])
        if reason := _by_look(shot, part, cfg):
            dropped.append({"uri": row["uri"], "reason": reason + _where(shot, row)})
        else:
            parts.append((shot, part))
    return parts


def _by_look(row: Row, look: Look, cfg: FilterConfig) -> str:
    reason = ""
    if "black" in cfg.drop:
        reason = is_black(look)
    if not reason and "static" in cfg.drop and row["duration_s"] > 0:
        reason = is_static(look)
    if not reason and "silent" in cfg.drop:
        reason = is_silent(row, look)
    return reason


def _without_duplicates(
    seen: list[tuple[Row, Look | None]], cfg: FilterConfig, dropped: list[Reason]
) -> list[Row]:
    """The first of each set of near-duplicates, or all of them in one group."""
    rows = [row for row, _ in seen]
    looked = [(i, look) for i, (_, look) in enumerate(seen) if look is not None]
    if not can_hash() or not any(len(look.hash_T) or look.sound_SB is not None for _, look in looked):
        return rows
    firsts = first_of_each([print_of(look) for _, look in looked])
    gone: set[int] = set()
    groups = _Groups()
    for (i, _), first in zip(looked, firsts, strict=True):
        same = looked[first][0]
        if same == i:
            continue
        if "duplicate" in cfg.drop:
            gone.add(i)
            reason = f"near-duplicate of {rows[same]['uri']}{_span(rows[same])}"
            dropped.append({"uri": rows[i]["uri"], "reason": reason})
        groups.join(rows[same]["group"], rows[i]["group"])
    return [row | {"group": groups.name(row["group"])} for i, row in enumerate(rows) if i not in gone]


class _Groups:
    """Whole groups are joined: another clip of a duplicate's file goes where the duplicate goes."""

    def __init__(self) -> None:
        self.joined: dict[str, str] = {}

    def name(self, group: str) -> str:
        while group in self.joined:
            group = self.joined[group]
        return group

    def join(self, first: str, second: str) -> None:
        first, second = self.name(first), self.name(second)
        if first != second:
            self.joined[second] = first


def _kept(rows: list[Row], dropped: list[Reason], why: Callable[[Row], str]) -> list[Row]:
    kept = []
    for row in rows:
        if reason := why(row):
            dropped.append({"uri": row["uri"], "reason": reason})
        else:
            kept.append(row)
    return kept


def _where(shot: Row, row: Row) -> str:
    return "" if shot is row else f" (shot{_span(shot)})"


def _span(row: Row) -> str:
    whole = row["end_s"] - row["start_s"] > row["duration_s"] - SPAN_SLACK_S
    return "" if whole else f" {row['start_s']:.2f}-{row['end_s']:.2f} s"
