"""What is asked of the API, checked against what the model can do before anything waits for a replica."""

from __future__ import annotations

import asyncio
import difflib
import math
import secrets
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from avtok.decode import ClipError, MediaInfo, probe
from ray_jobs.serve_body import Upload
from ray_jobs.serve_facts import MAX_SECONDS, ModelFacts
from ray_jobs.serve_problems import Problem
from worldmodel.prompt import Prompt

FILES = {"input_image": "image", "input_video": "video", "input_audio": "audio"}
REFERENCE = "input_reference"
KEYS = (
    *("model", "prompt", "seconds", "num_frames", "size", "seed", "steps", "guidance", "speech_guidance"),
    *("wait", "voice", REFERENCE, *FILES),
)
MAX_SEED = 2**63 - 1
MAX_STEPS = 200
MAX_GUIDANCE = 100.0


@dataclass(frozen=True)
class Asked:
    """One clip. media: by the pipeline's argument. num_frames None: as trained, after what is given."""

    prompt: str
    read: Prompt
    seed: int
    num_frames: int | None = None
    steps: int | None = None
    guidance: float | None = None
    speech_guidance: float | None = None
    wait: bool = False
    media: dict[str, Upload] = field(default_factory=dict)


async def read_request(fields: dict[str, Any], model: ModelFacts) -> Asked:
    """Problem or PromptError for what this model cannot make."""
    _check_keys(fields)
    named = fields.get("model")
    if named not in (None, "", model.name):
        raise Problem(404, "not-found", f"model {named!r:.60} is not served here; {model.name} is")
    _check_voice(fields.get("voice"), model)
    text = fields.get("prompt")
    if not isinstance(text, str | None):
        raise Problem(422, "prompt", f"prompt is text, got {text!r:.40}")
    read = Prompt.parse(text or "")
    read.check(model.cfg.model)
    _check_size(fields.get("size"), model)
    if fields.get("speech_guidance") not in (None, "") and not model.cfg.model.speech_bytes:
        raise Problem(422, "ability", f"{model.name} does not speak; leave speech_guidance out")
    media = await asyncio.to_thread(_media, fields, model) if _has_files(fields) else {}
    seed = _number(fields, "seed", 0, MAX_SEED, whole=True)
    steps = _number(fields, "steps", 1, MAX_STEPS, whole=True)
    return Asked(
        prompt=text or "",
        read=read,
        seed=secrets.randbits(31) if seed is None else int(seed),
        num_frames=_num_frames(fields, model),
        steps=None if steps is None else int(steps),
        guidance=_number(fields, "guidance", 0, MAX_GUIDANCE),
        speech_guidance=_number(fields, "speech_guidance", 0, MAX_GUIDANCE),
        wait=str(fields.get("wait", "")).lower() in ("true", "1"),
        media=media,
    )


def _check_keys(fields: dict[str, Any]) -> None:
    for key in fields:
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(KEYS)}"
            raise Problem(422, "key", f"unknown key {key!r:.60}; {hint}")


def _check_voice(voice: object, model: ModelFacts) -> None:
    if voice in (None, ""):
        return
    if not model.cfg.model.speech_bytes:
        raise Problem(422, "ability", f"voice {voice!r:.40}: {model.name} does not speak; leave it out")
    raise Problem(
        422,
        "ability",
        f"voice {voice!r:.40}: {model.name} has no voices by name; say in the prompt who speaks, such as "
        "'a woman says \"...\"'",
    )


def _check_size(size: object, model: ModelFacts) -> None:
    if size not in (None, "", model.size):
        raise Problem(
            422, "size", f"size {size!r:.40} is asked, and {model.name} makes {model.size}; use that"
        )


def _num_frames(fields: dict[str, Any], model: ModelFacts) -> int | None:
    fps, chunk, most = model.cfg.data.fps, model.cfg.model.chunk_frames, model.max_frames
    if fields.get("seconds") not in (None, "") and fields.get("num_frames") not in (None, ""):
        raise Problem(422, "value", "seconds and num_frames are both given; give one of them")
    seconds = _number(fields, "seconds", 0, MAX_SECONDS)
    if seconds is None:
        frames = _number(fields, "num_frames", 1, most, whole=True)
        asked, unit = (frames, 1.0) if frames is not None else (None, 1.0)
        name = "num_frames"
    else:
        asked, unit, name = seconds * fps, 1.0 / fps, "seconds"
    if asked is None:
        return None
    near = min(most, max(chunk, round(asked / chunk) * chunk))
    if abs(asked - near) > 1e-6 * fps:
        raise Problem(
            422,
            "value",
            f"{name}={asked * unit:g}: {model.name} makes clips in steps of {chunk * unit:g}; "
            f"use {near * unit:g}",
        )
    return near


def _number(
    fields: dict[str, Any], name: str, low: float, high: float, *, whole: bool = False
) -> float | None:
    """None where nothing is given. Text is read as a number, for forms have nothing else."""
    given = fields.get(name)
    if given is None or given == "":
        return None
    try:
        if isinstance(given, bool) or not isinstance(given, int | float | str):
            raise ValueError
        number = int(given) if whole and not isinstance(given, float) else float(given)
        if not math.isfinite(number) or (whole and number != int(number)):
            raise ValueError
    except ValueError:
        kind = "a whole number" if whole else "a number"
        raise Problem(422, "value", f"{name} is {kind}, got {given!r:.40}") from None
    if not low <= number <= high:
        raise Problem(422, "value", f"{name}={given!s:.40}: use {low:g} to {high:g}")
    return number


def _has_files(fields: dict[str, Any]) -> bool:
    return any(name in fields for name in (*FILES, REFERENCE))


def _media(fields: dict[str, Any], model: ModelFacts) -> dict[str, Upload]:
    """What is given besides the prompt, each file opened once. Reads files: not for the event loop."""
    found: dict[str, Upload] = {}
    for name in (*FILES, REFERENCE):
        upload = fields.get(name)
        if upload is None or upload == "":
            continue
        if not isinstance(upload, Upload):
            raise Problem(422, "media", f"{name} is a file; send it in a multipart form")
        info = probed(upload)
        what = FILES.get(name) or ("video" if info.duration_s else "image")
        modality, called = ("audio", "sound") if what == "audio" else ("video", "pictures")
        if modality not in model.cfg.made:
            raise Problem(422, "ability", f"{name}: {model.name} was trained without {called}; leave it out")
        if what in found:
            raise Problem(422, "media", f"the {what} is given twice; give one of them")
        if what == "audio" and not info.has_audio:
            raise Problem(422, "media", f"{upload.name}: holds no sound, and {name} is the sound")
        if what != "audio" and not info.has_video:
            raise Problem(422, "media", f"{upload.name}: holds no picture; give sound as input_audio")
        found[what] = upload
    if "image" in found and "video" in found:
        raise Problem(422, "media", "a picture and a clip are both given as the beginning; give one of them")
    return found


def probed(upload: Upload) -> MediaInfo:
    """Problem for a file that cannot be decoded."""
    with tempfile.NamedTemporaryFile(suffix=upload.suffix, prefix="worldmodel-") as file:
        Path(file.name).write_bytes(upload.content)
        try:
            return probe(file.name)
        except ClipError as error:
            words = str(error).replace(file.name, upload.name)
            raise Problem(422, "media", words) from None
