"""Find a codec by shipped name or by folder. Imports without torch: configs need only the spec."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avtok.spec import CodecSpec

if TYPE_CHECKING:
    from avtok.audio import LogMelCodec
    from avtok.picture import LearnedVideoCodec
    from avtok.pretrained import PretrainedAudioCodec, PretrainedVideoCodec
    from avtok.sound import LearnedAudioCodec
    from avtok.video import PcaVideoCodec

    Codec = (
        PcaVideoCodec
        | LogMelCodec
        | LearnedVideoCodec
        | LearnedAudioCodec
        | PretrainedVideoCodec
        | PretrainedAudioCodec
    )

WEIGHTS = Path(__file__).parent / "weights"
PRETRAINED = "pretrained:"  # before the folder of a diffusers or transformers autoencoder
KINDS = ("pca_video", "log_mel", "learned_video", "learned_audio", "pretrained")


def codec_spec(name_or_folder: str) -> CodecSpec:
    """Geometry of a shipped codec or of a folder with codec.json. ValueError names what exists."""
    record = _record(name_or_folder)
    known = {f.name for f in fields(CodecSpec)}
    try:
        return CodecSpec.from_dict({k: v for k, v in record.items() if k in known})
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{codec_folder(name_or_folder) / 'codec.json'} is not a codec's geometry: {error}"
        ) from error


def load_codec(name_or_folder: str, *, device: str = "cpu") -> Codec:
    """The codec itself. ValueError names what exists, and says where a device is missing.

    device: where it computes. Pixels, samples and latents are on the CPU on either side.
    """
    codec = _load(name_or_folder)
    if device == "cpu":
        return codec
    from avtok.devices import on_device

    return on_device(codec, device)


def _load(name_or_folder: str) -> Codec:
    record, spec = _record(name_or_folder), codec_spec(name_or_folder)
    folder, trained_on = codec_folder(name_or_folder), tuple(record.get("trained_on", ()))
    if record["kind"] == "pca_video":
        from avtok.video import PcaVideoCodec

        return PcaVideoCodec.load(folder, spec, trained_on=trained_on)
    if record["kind"] == "learned_video":
        from avtok.picture import LearnedVideoCodec

        return LearnedVideoCodec.load(folder, spec, net=record["net"], trained_on=trained_on)
    if record["kind"] == "learned_audio":
        from avtok.sound import LearnedAudioCodec

        return LearnedAudioCodec.load(folder, spec, net=record["net"], trained_on=trained_on)
    if record["kind"] == "pretrained":
        from avtok.pretrained import load_pretrained

        return load_pretrained(folder, spec, mean=record["mean"], lead=record["lead"])
    from avtok.audio import LogMelCodec

    return LogMelCodec(spec)


def shipped_codecs() -> list[str]:
    return sorted(path.parent.name for path in WEIGHTS.glob("*/codec.json"))


def codec_folder(name_or_folder: str) -> Path:
    """Where a codec lies; a name that is not shipped is taken for a folder, with `pretrained:` before it or
    not."""
    name_or_folder = name_or_folder.removeprefix(PRETRAINED)
    shipped = WEIGHTS / name_or_folder
    return shipped if name_or_folder in shipped_codecs() else Path(name_or_folder)


def _record(name_or_folder: str) -> dict[str, Any]:
    path = codec_folder(name_or_folder) / "codec.json"
    if not path.is_file() and name_or_folder.startswith(PRETRAINED):
        raise ValueError(
            f"codec {name_or_folder!r} has not been measured; run "
            f"`worldmodel tokenizer measure {path.parent}`"
        )
    if not path.is_file():
        raise ValueError(
            f"codec {name_or_folder!r} is neither shipped nor a folder with codec.json; "
            f"shipped: {', '.join(shipped_codecs())}"
        )
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(record, dict) or record.get("kind") not in KINDS:
        raise ValueError(f"{path} names no known kind of codec; known: {', '.join(KINDS)}")
    return record
