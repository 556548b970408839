"""Indexed clips -> cuts of the lengths that training takes, in columns: a million of them in seconds."""

# pyarrow makes the functions of pyarrow.compute when it is imported
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_jobs.actions import resampled
from ray_jobs.buckets import Bucket, nearest_size
from ray_jobs.errors import UserError
from ray_jobs.manifest_columns import ManifestColumns
from worldmodel.config import RunConfig

# N rows of a manifest, S cuts.

SLICE = 1 << 16  # Python objects for that many rows at a time


@dataclass(frozen=True)
class Cuts:
    """Row of the manifests, start, bucket and seconds of media of each cut, and whether it is held out."""

    row_S: np.ndarray
    start_S: np.ndarray
    end_S: np.ndarray
    bucket_S: np.ndarray
    valid_S: np.ndarray
    held_out_S: np.ndarray


def make_cuts(manifest: ManifestColumns, cfg: RunConfig, buckets: tuple[Bucket, ...]) -> Cuts:
    """Whole clips of every span: the longest length as often as it fits, then the next. A rest shorter than
    every length is dropped, a span shorter than every length is one clip with an invalid tail. Train cuts
    first, else in the manifests' order."""
    row_S, start_S, bucket_S, valid_S = _cut_spans(manifest, cfg, buckets)
    held_out_S = held_out_groups(manifest["group"], cfg.data.held_out)[row_S]
    order = np.lexsort((start_S, row_S, held_out_S))
    start_S, bucket_S = start_S[order], bucket_S[order]
    end_S = start_S + np.array([bucket.clip_s for bucket in buckets])[bucket_S]
    return Cuts(row_S[order], start_S, end_S, bucket_S, valid_S[order], held_out_S[order])


def _cut_spans(
    manifest: ManifestColumns, cfg: RunConfig, buckets: tuple[Bucket, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Row, start, bucket and seconds of media of each cut."""
    start_N, end_N = manifest.numbers("start_s"), manifest.numbers("end_s")
    is_still_N = manifest.numbers("duration_s") == 0
    has_video_N = manifest.numbers("has_video").astype(bool)
    span_N = np.where(is_still_N, cfg.chunk_s, end_N - start_N)
    slack_s = 1 / cfg.data.fps  # containers round a duration by up to a frame
    parts = []
    for kind, own_N in (
        ("still", is_still_N),
        ("sound", ~has_video_N & ~is_still_N),
        ("picture", has_video_N & ~is_still_N),
    ):
        used_N, lengths = np.zeros(len(span_N)), sorted({b.clip_s for b in buckets if b.kind == kind})[::-1]
        for clip_s in lengths:
            count_N = np.floor((span_N - used_N + slack_s) / clip_s).astype(np.int64)
            if clip_s == lengths[-1]:
                count_N = np.where(used_N > 0, count_N, np.maximum(count_N, 1))
            count_N = np.where(own_N, np.maximum(count_N, 0), 0)
            rows = np.repeat(np.arange(len(span_N)), count_N)
            nth = np.arange(len(rows)) - np.repeat(np.cumsum(count_N) - count_N, count_N)
            into_s = used_N[rows] + nth * clip_s
            bucket = _bucket_of(
                manifest,
                rows,
                [i for i, b in enumerate(buckets) if b.kind == kind and b.clip_s == clip_s],
                buckets,
            )
            parts.append((rows, start_N[rows] + into_s, bucket, np.minimum(clip_s, span_N[rows] - into_s)))
            used_N = used_N + count_N * clip_s
    rows_S, start_S, bucket_S, valid_S = (np.concatenate(column) for column in zip(*parts, strict=True))
    return rows_S, start_S, bucket_S, valid_S


def _bucket_of(
    manifest: ManifestColumns, rows: np.ndarray, candidates: list[int], buckets: tuple[Bucket, ...]
) -> np.ndarray:
    if len(candidates) == 1:
        return np.full(len(rows), candidates[0], dtype=np.int64)
    sizes = [buckets[i].size for i in candidates]
    height, width = (manifest.numbers(name)[rows] for name in ("height", "width"))
    return np.array(candidates)[nearest_size(height, width, sizes)]


def transcripts(manifest: ManifestColumns, cuts: Cuts) -> pa.ChunkedArray:
    """Timed words that begin in the cut. A transcript without times is all there is of every cut."""
    written, speech = manifest["transcript"], manifest["speech_json"]
    plain = written.take(pa.array(cuts.row_S))
    has_cues_N = pc.not_equal(speech, "").to_numpy()
    changed_S, said = np.zeros(len(plain), dtype=bool), dict[int, str]()
    for row, own in _cuts_by_row(cuts.row_S, has_cues_N):
        cues = json.loads(speech[row].as_py())
        timed = [(float(cue["start"]), cue["text"]) for cue in cues if "start" in cue]
        if timed or not written[row].as_py():
            changed_S[own] = True
            for cut in own:
                begin_s, end_s = cuts.start_S[cut], cuts.end_S[cut]
                inside = [text for start_s, text in timed if begin_s <= start_s < end_s]
                said[cut] = " ".join(inside if timed else [cue["text"] for cue in cues])
    words = pa.array([said[cut] for cut in sorted(said)], pa.string())
    return pc.replace_with_mask(plain, pa.array(changed_S), words)


def actions(manifest: ManifestColumns, cuts: Cuts, cfg: RunConfig) -> pa.Array:
    """JSON, one row a frame at data.fps; UserError for actions wider than the model takes."""
    told = manifest["actions"]
    begin_N, fps_N, fps = manifest.numbers("start_s"), manifest.numbers("fps"), cfg.data.fps
    made: list[str] = []
    place_S = np.full(len(cuts.row_S), -1)
    for row, own in _cuts_by_row(cuts.row_S, pc.not_equal(told, "").to_numpy()):
        told_FA, begin_s = np.array(json.loads(told[row].as_py())), begin_N[row]
        if told_FA.shape[1] > cfg.model.action_dim:
            raise UserError(
                f"{manifest['uri'][row]}: actions are {told_FA.shape[1]} wide, model.action_dim is "
                f"{cfg.model.action_dim}; use --set model.action_dim={told_FA.shape[1]}"
            )
        own_FA = resampled(told_FA, clip_hz=fps_N[row], grid_hz=fps, start_s=begin_s)
        for cut in own:
            first = round((cuts.start_S[cut] - begin_s) * fps)
            part = own_FA[first : first + round((cuts.end_S[cut] - cuts.start_S[cut]) * fps)].tolist()
            place_S[cut] = len(made)
            made.append(json.dumps(part) if part else "")
    return pa.array([*made, ""], pa.string()).take(pa.array(place_S % (len(made) + 1)))


def _cuts_by_row(row_S: np.ndarray, chosen_N: np.ndarray) -> Iterator[tuple[int, list[int]]]:
    """Each chosen row with its cuts."""
    order = np.argsort(row_S, kind="stable")
    sorted_S, rows = row_S[order], np.flatnonzero(chosen_N)
    first, last = np.searchsorted(sorted_S, rows), np.searchsorted(sorted_S, rows + 1)
    for row, begin, end in zip(rows.tolist(), first.tolist(), last.tolist(), strict=True):
        yield row, order[begin:end].tolist()


def held_out_groups(groups: pa.ChunkedArray, fraction: float) -> np.ndarray:
    """Whether each row's group is held out: groups whose hash lies below the fraction, so that adding files
    moves no other. At least one group on each side where there are two."""
    if fraction == 0 or len(groups) < 2:
        return np.zeros(len(groups), dtype=bool)
    encoded = groups.dictionary_encode().unify_dictionaries().combine_chunks()
    if len(encoded.dictionary) < 2:
        return np.zeros(len(groups), dtype=bool)
    hashes = _unit_hashes(encoded.dictionary)
    held_out = hashes < fraction
    held_out[hashes.argmin()] = True
    held_out[hashes.argmax()] = False
    return held_out[encoded.indices.to_numpy()]


def _unit_hashes(names: pa.Array) -> np.ndarray:
    """Numbers in [0, 1), the same on any machine."""
    first = bytearray()
    for begin in range(0, len(names), SLICE):
        for name in names[begin : begin + SLICE].to_pylist():
            first += hashlib.sha256(name.encode()).digest()[:8]
    return np.frombuffer(first, dtype=">u8").astype(np.float64) / 2**64
