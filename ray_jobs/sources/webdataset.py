"""WebDataset shards: tars in which files of one name up to its first point make a sample.

A sample is a picture or a sound (.mp4, .jpg, .flac, ...), if it is a picture also a sound of its own, a
caption (.txt or .cls), fields as in a manifest (.json), and actions (.npy, .npz, .parquet or .actions.json).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from ray_jobs.errors import UserError
from ray_jobs.sources.ahead import in_order
from ray_jobs.sources.folders import MAX_SIDECAR_BYTES, fields_of
from ray_jobs.sources.rows import (
    ACTION_SUFFIXES,
    MOVING_SUFFIXES,
    SOUND_SUFFIXES,
    STILL_SUFFIXES,
    Notes,
    RowError,
    SourceRow,
    row_of,
    suffix_of,
)
from ray_jobs.sources.tars import Entry, TarError, Window, entries
from ray_jobs.stores import Member, StoreError, is_remote

CAPTION_SUFFIXES = (".txt", ".cls")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_SAMPLE = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)")  # as webdataset.base_plus_ext: up to the first point


@dataclass
class Sample:
    """Files that belong together, in the order of the archive."""

    key: str
    members: list[Entry] = field(default_factory=list)

    def first(self, suffixes: Collection[str]) -> Entry | None:
        """Names of one point come before 000.depth.png and the like."""
        own = [member for member in self.members if suffix_of(member.name) in suffixes]
        return min(own, key=lambda member: _extension(member).count("."), default=None)


def shards_of(pattern: str) -> list[str]:
    """`shard-{000..012}.tar` and `{train,test}.tar` as a shell spells them out; other names as they are."""
    parts = _BRACES.split(pattern)
    choices = [[part] if i % 2 == 0 else _choices(part) for i, part in enumerate(parts)]
    return ["".join(chosen) for chosen in product(*choices)]


def shard_rows(shards: list[str], notes: Notes) -> Iterator[SourceRow]:
    """UserError when none of the shards is a tar with samples."""
    num_samples, problems = 0, []
    for shard, rows, own in in_order(_read_shard, shards, are_remote=is_remote(shards[0])):
        num_samples += len(rows)
        problems += [f"{shard}: {row['reason']}" for row in own.rejected if row["uri"] == shard]
        notes.add(own)
        yield from rows
    if not num_samples and problems:
        raise UserError(*problems)


def _read_shard(shard: str) -> tuple[str, list[SourceRow], Notes]:
    rows, notes = [], Notes()
    try:
        window = Window(shard)
    except StoreError as error:
        notes.reject(shard, str(error).removeprefix(f"{shard}: "))
        return shard, rows, notes
    with window:
        for sample in _samples(window, notes):
            try:
                rows.append(_row(sample, window, notes))
            except (RowError, StoreError) as error:
                notes.reject(f"{shard}/{sample.key}", error)
    if not rows and not notes.rejected:
        notes.reject(shard, "the archive holds no samples")
    return shard, rows, notes


def _samples(window: Window, notes: Notes) -> Iterator[Sample]:
    sample = Sample("")
    try:
        for entry in entries(window):
            found = _SAMPLE.fullmatch(entry.name)
            if found is None:
                continue  # without a point, or hidden: WebDataset passes these over too
            if found[1] != sample.key:
                if sample.members:
                    yield sample
                sample = Sample(found[1])
            sample.members.append(entry)
    except (TarError, StoreError) as error:
        notes.reject(window.uri, str(error).removeprefix(f"{window.uri}: "))
    if sample.members:
        yield sample


def _row(sample: Sample, window: Window, notes: Notes) -> SourceRow:
    if broken := next((member for member in sample.members if member.reason), None):
        raise RowError(f"{broken.name}: {broken.reason}")
    sound = sample.first(SOUND_SUFFIXES)
    media = sample.first(MOVING_SUFFIXES) or sample.first(STILL_SUFFIXES) or sound
    if media is None:
        raise RowError(f"the sample holds no media, only {', '.join(map(_extension, sample.members))}")
    caption = sample.first(CAPTION_SUFFIXES)
    actions = next((member for member in sample.members if _holds_actions(member)), None)
    fields: dict[str, Any] = {"id": sample.key}
    for member in sample.members:
        if suffix_of(member.name) == ".json" and member is not actions:
            fields |= fields_of(_read(window, member), notes)
        elif member not in (sound, media, caption, actions):
            notes.unused[_extension(member)] = None
    if sound is not None and sound is not media:
        fields["audio"] = _uri(window, sound)
    if caption is not None:
        fields["caption"] = _read(window, caption).decode("utf-8", errors="replace")
    if actions is not None:
        fields["actions"] = _uri(window, actions)
    return row_of(fields, window.uri, uri=_uri(window, media))


def _extension(member: Entry) -> str:
    return "." + member.name.rpartition("/")[2].partition(".")[2]


def _holds_actions(member: Entry) -> bool:
    if suffix_of(member.name) == ".json":
        return _extension(member) in (".actions.json", ".action.json")
    return suffix_of(member.name) in ACTION_SUFFIXES


def _read(window: Window, member: Entry) -> bytes:
    if member.size > MAX_SIDECAR_BYTES:
        raise RowError(f"{member.name}: is {member.size} bytes, and at most {MAX_SIDECAR_BYTES} are read")
    return window.read(member.offset, member.size)


def _uri(window: Window, entry: Entry) -> str:
    return str(Member(window.uri, entry.offset, entry.size, entry.name))


def _choices(inside: str) -> list[str]:
    if (ends := _RANGE.fullmatch(inside)) is None:
        return inside.split(",") if "," in inside else [f"{{{inside}}}"]
    first, last = int(ends[1]), int(ends[2])
    step = 1 if last >= first else -1
    width = max(len(ends[1]), len(ends[2])) if ends[1].startswith("0") or ends[2].startswith("0") else 0
    return [f"{number:0{width}d}" for number in range(first, last + step, step)]
