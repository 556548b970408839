"""Whose label it is. A label that models made says so in `labels_json`; any other is of people, and stays.

labels_json holds, by field (caption, transcript, speech):
{"by": model, "confidence": x, "automatic": true, "digest": of what was made}, and for speech also "of" (the
digest of the transcript that was timed) and "times_only" (the words are of people), or
{"by": model, "left_out": kind of reason} for what that model could not make, so that it is not tried again.
Where text and digest no longer fit, somebody has changed it since: then it is theirs, even where it is empty.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ray_jobs.labels.models import LabelModels

FIELDS = ("caption", "transcript", "speech")
COLUMNS = {"caption": "caption", "transcript": "transcript", "speech": "speech_json"}
LOW_CONFIDENCE = "confidence too low"
Row = dict[str, Any]


@dataclass(frozen=True)
class LeftOut:
    """Why a field of a clip has no label: a kind, to be counted, and the whole story."""

    kind: str
    detail: str = ""
    confidence: float | None = None
    is_failure: bool = False  # of a model or a file: what was there stays, and it is tried again


@dataclass(frozen=True)
class Made:
    """A label as it goes into the manifest."""

    value: str
    confidence: float
    by: str


Outcome = dict[str, Made | LeftOut]


def marks_of(row: Row) -> dict[str, dict[str, Any]]:
    try:
        marks = json.loads(row.get("labels_json") or "{}")
    except json.JSONDecodeError:
        return {}  # what nobody can read marks nothing: all labels are of people
    return marks if isinstance(marks, dict) else {}


def digest_of(field: str, value: str) -> str:
    """Of what is said and when; other keys of a cue, such as its confidence, may get lost on the way."""
    if field == "speech" and value:
        value = json.dumps([[cue.get(key) for key in ("start", "end", "text")] for cue in json.loads(value)])
    return hashlib.sha256(value.encode()).hexdigest()[:12]


def is_automatic(row: Row, field: str) -> bool:
    """Made by a model and not touched since."""
    mark = marks_of(row).get(field, {})
    return bool(mark.get("automatic")) and mark.get("digest") == digest_of(field, value_of(row, field))


def is_human(row: Row, field: str) -> bool:
    """Written by people, or emptied by them. `speech: []` says that nobody speaks."""
    if is_automatic(row, field):
        return False
    return bool(value_of(row, field)) or bool(marks_of(row).get(field, {}).get("automatic"))


def value_of(row: Row, field: str) -> str:
    return row.get(COLUMNS[field]) or ""


def cues_of(row: Row) -> list[dict[str, Any]]:
    return json.loads(value_of(row, "speech") or "[]")


def words_of(row: Row) -> str:
    """What people or models wrote that is said: the transcript, or the cues' text."""
    return value_of(row, "transcript") or " ".join(str(cue.get("text", "")) for cue in cues_of(row)).strip()


def wanted_fields(row: Row, models: LabelModels, *, redo: bool, min_confidence: float) -> frozenset[str]:
    """What is to be made for a clip: what is missing and can be made, with redo also what models made."""
    wanted = set[str]()
    marks = marks_of(row)

    def is_open(field: str, by: str) -> bool:
        """Missing and not tried in vain, or to be made anew."""
        if is_human(row, field):
            return False
        if value_of(row, field):
            return redo
        mark = marks.get(field, {})
        if redo or mark.get("by") != by or "left_out" not in mark:
            return True
        return mark["left_out"] == LOW_CONFIDENCE and mark.get("confidence", 0.0) >= min_confidence

    if models.captioner and row["has_video"] and is_open("caption", models.captioner.by):
        wanted.add("caption")
    if not row["has_sound"]:
        return frozenset(wanted)
    nobody_wrote = not is_human(row, "transcript") and not _says_what_people_wrote(row)
    if models.recognizer and nobody_wrote and is_open("transcript", models.recognizer.by):
        wanted.add("transcript")
        if models.speech_by:
            wanted.add("speech")
    elif models.aligner and words_of(row) and not _has_times(row):
        if _untimed_by_people(row) or is_open("speech", models.aligner.by):
            wanted.add("speech")
    elif models.aligner and redo and is_automatic(row, "speech"):
        wanted.add("speech")
    return frozenset(wanted)


def settled(row: Row) -> Row:
    """Times of a transcript that was changed since are gone: they would hide the new words."""
    mark = marks_of(row).get("speech", {})
    if not is_automatic(row, "speech") or mark.get("of") == digest_of("transcript", row["transcript"] or ""):
        return row
    return _without_times(row)


def with_outcome(row: Row, outcome: Outcome, by: dict[str, str]) -> Row:
    """The row with what was made. Whatever the outcome says, nothing that people wrote is touched, but for
    times that are added to their words."""
    for field in FIELDS:
        found = outcome.get(field)
        if isinstance(found, Made) and _may_write(row, field, found):
            row = _with_made(row, field, found)
        elif isinstance(found, LeftOut) and not found.is_failure and not is_human(row, field):
            row = _with_left_out(row, field, found, by[field])
    remade = outcome.get("transcript")
    if remade and not (isinstance(remade, LeftOut) and remade.is_failure) and "speech" not in outcome:
        row = settled(row)
    return row


def _with_made(row: Row, field: str, made: Made) -> Row:
    mark: dict[str, Any] = {
        "by": made.by,
        "confidence": round(made.confidence, 4),
        "automatic": True,
        "digest": digest_of(field, made.value),
    }
    if field == "speech":
        mark["of"] = digest_of("transcript", row["transcript"] or "")
        if _untimed_by_people(row) or marks_of(row).get("speech", {}).get("times_only"):
            mark["times_only"] = True
    return _marked(row | {COLUMNS[field]: made.value}, field, mark)


def _with_left_out(row: Row, field: str, found: LeftOut, by: str) -> Row:
    row = _without_times(row) if field == "speech" else row | {COLUMNS[field]: ""}
    mark: dict[str, Any] = {"by": by, "left_out": found.kind}
    if found.confidence is not None:
        mark["confidence"] = round(found.confidence, 4)
    return row if is_human(row, field) else _marked(row, field, mark)


def _without_times(row: Row) -> Row:
    """Without automatic speech; where people wrote its words and models only the times, the words stay."""
    words = [{key: cue[key] for key in ("speaker", "text") if key in cue} for cue in cues_of(row)]
    kept = json.dumps(words, ensure_ascii=False) if marks_of(row).get("speech", {}).get("times_only") else ""
    return _marked(row | {"speech_json": kept}, "speech", None)


def _may_write(row: Row, field: str, found: Made | LeftOut) -> bool:
    if field == "transcript" and _says_what_people_wrote(row):
        return False  # people said in `speech` what is said
    if field != "speech" or not _says_what_people_wrote(row):
        return not is_human(row, field)
    if not isinstance(found, Made) or not (_untimed_by_people(row) or is_automatic(row, "speech")):
        return False
    told, theirs = json.loads(found.value), cues_of(row)
    return _words(told) == _words(theirs)  # times are added, no word is changed


def _says_what_people_wrote(row: Row) -> bool:
    """Also where a model added the times to their words."""
    mark = marks_of(row).get("speech", {})
    return is_human(row, "speech") or (is_automatic(row, "speech") and bool(mark.get("times_only")))


def _words(cues: list[dict[str, Any]]) -> list[str]:
    return " ".join(str(cue.get("text", "")) for cue in cues).split()


def _has_times(row: Row) -> bool:
    return any("start" in cue for cue in cues_of(row))


def _untimed_by_people(row: Row) -> bool:
    return is_human(row, "speech") and bool(cues_of(row)) and not _has_times(row)


def _marked(row: Row, field: str, mark: dict[str, Any] | None) -> Row:
    marks: dict[str, Any] = {name: old for name, old in marks_of(row).items() if name != field}
    if mark is not None:
        marks[field] = mark
    return row | {"labels_json": json.dumps(marks, sort_keys=True) if marks else ""}


def count_people(rows: Iterable[Row]) -> dict[str, int]:
    """Fields that people wrote."""
    counts: dict[str, int] = dict.fromkeys(FIELDS, 0)
    for row in rows:
        for field in FIELDS:
            counts[field] += is_human(row, field) and bool(value_of(row, field))
    return counts
