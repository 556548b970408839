"""Which local model makes which label: folders are checked before weights or a cluster are touched."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ray_jobs.errors import UserError
from worldmodel.config import LabelConfig

POCKETSPHINX = "pocketsphinx"
HASH_BLOCK_BYTES = 1 << 20
Kind = Literal["captioner", "seq2seq", "ctc", "pocketsphinx"]
_IS: dict[Kind, str] = {
    "captioner": "an image-to-text model",
    "seq2seq": "a speech recogniser",
    "ctc": "a CTC speech recogniser",
    "pocketsphinx": "a speech recogniser",
}


@dataclass(frozen=True)
class LabelModel:
    """One model. `by` names it in labels: the folder's name and a hash of all that lies in it."""

    path: str
    kind: Kind
    by: str


@dataclass(frozen=True)
class LabelModels:
    """What is there to label with. The aligner is the recogniser itself when that is a CTC model."""

    captioner: LabelModel | None = None
    recognizer: LabelModel | None = None
    aligner: LabelModel | None = None

    @property
    def times_words(self) -> bool:
        """Every transcript can be timed, not only those that are made here."""
        return self.aligner is not None

    @property
    def speech_by(self) -> str:
        """Who times the words of a transcript that is made here; empty: nobody."""
        if self.aligner is not None:
            return self.aligner.by
        recognizer = self.recognizer
        return recognizer.by if recognizer is not None and recognizer.kind == "pocketsphinx" else ""


def find_models(cfg: LabelConfig) -> LabelModels:
    """UserError, one line for each of them, when a folder is not there or holds another kind of model."""
    found: dict[str, LabelModel | None] = {}
    problems: list[str] = []
    for role in ("captioner", "recognizer", "aligner"):
        given = getattr(cfg, role)
        try:
            found[role] = _find(role, given) if given else None
        except UserError as error:
            problems += error.lines
    if problems:
        raise UserError(*problems)
    recognizer = found["recognizer"]
    if found["aligner"] is None and recognizer is not None and recognizer.kind == "ctc":
        found["aligner"] = recognizer
    return LabelModels(**found)


def _find(role: str, given: str) -> LabelModel:
    if role == "recognizer" and given == POCKETSPHINX:
        return LabelModel(given, "pocketsphinx", f"{given}:{_folder_hash(_pocketsphinx_folder())}")
    folder = Path(given)
    kind, architecture = _kind_of(role, folder)
    by_role: dict[str, tuple[Kind, ...]] = {"captioner": ("captioner",), "aligner": ("ctc",)}
    wanted = by_role.get(role, ("seq2seq", "ctc"))
    if kind not in wanted:
        is_one = f"is {_IS[kind]}" if kind else "is no model that labels are made with"
        raise UserError(f"{role} {given}: {architecture} {is_one}; give the folder of {_wanted(role)}")
    return LabelModel(str(folder.resolve()), kind, f"{folder.resolve().name}:{_folder_hash(folder)}")


def _wanted(role: str) -> str:
    return {
        "captioner": "a transformers image-to-text model, such as BLIP or GIT",
        "recognizer": "a transformers speech recogniser, such as Whisper or Wav2Vec2ForCTC, "
        f"or the word {POCKETSPHINX}",
        "aligner": "a transformers CTC model, such as Wav2Vec2ForCTC",
    }[role]


def _kind_of(role: str, folder: Path) -> tuple[Kind | None, str]:
    """By the class that config.json names: a base model without its head is none."""
    config_file = folder / "config.json"
    try:
        config: dict[str, Any] = json.loads(config_file.read_text("utf-8"))
        architecture = str((config.get("architectures") or ["a model without a class"])[0])
    except (OSError, ValueError, AttributeError) as error:
        why = "no such file" if isinstance(error, OSError) else "not readable"
        raise UserError(f"{role} {folder}: config.json: {why}; give the folder of {_wanted(role)}") from None
    try:
        from transformers.models.auto import modeling_auto
    except ImportError:
        raise UserError(
            f"{role} {folder}: needs transformers, which is not installed; "
            "pip install 'worldmodel[pretrained]'"
        ) from None
    classes: dict[Kind, Any] = {
        "captioner": modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        "ctc": modeling_auto.MODEL_FOR_CTC_MAPPING_NAMES,
        "seq2seq": modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
    }
    kinds: list[Kind] = [kind for kind, names in classes.items() if architecture in names.values()]
    return (kinds[0] if kinds else None), architecture


def _pocketsphinx_folder() -> Path:
    try:
        import pocketsphinx
    except ImportError:
        raise UserError(
            f"recognizer {POCKETSPHINX}: it is not installed; pip install 'worldmodel[speech]'"
        ) from None
    return Path(pocketsphinx.get_model_path())


def _folder_hash(folder: Path) -> str:
    """Of every file: the same name with other weights is another model."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name.startswith(".") or "/." in name:
            continue
        digest.update(f"{name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(HASH_BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()[:12]
