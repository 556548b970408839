"""Spoken sentences of GRID's grammar with word and phoneme times, by espeak-ng. Needs worldmodel[speech].

GRID (Cooke et al. 2006): command colour preposition letter digit adverb. espeak-ng is GPL-3, so it is
loaded at run time in a process of its own and never shipped.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

# N samples.

GRID: dict[str, tuple[str, ...]] = {
    "command": ("bin", "lay", "place", "set"),
    "colour": ("blue", "green", "red", "white"),
    "preposition": ("at", "by", "in", "with"),
    "letter": tuple("abcdefghijklmnopqrstuvxyz"),  # no w: its name has more than one syllable
    "digit": ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    "adverb": ("again", "now", "please", "soon"),
}
# American voices that the recogniser reads when clean (word error 0.01 to 0.07 each, over 12 sentences).
# With others, such as plain en-us (0.3), its errors would hide what a codec loses.
VOICES = tuple(
    f"en-us+{variant}" for variant in ("f1", "f2", "f3", "f5", "m1", "m5", "m6", "klatt2", "michel", "Reed")
)
_ALSO = {"letter": ("zed",)}
_RESPELLED = {"a": "eigh"}  # the letter; espeak-ng reads "a" and "A" inside a sentence as the article
_PROCESS = Path(__file__).with_name("espeak_process.py")
_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class SpeechEvent:
    """A word or a phoneme (espeak-ng's mnemonic) and when it is heard."""

    name: str
    start_s: float
    end_s: float


@dataclass(frozen=True, eq=False)
class Utterance:
    """audio_N is float32 mono in [-1, 1] at espeak-ng's own rate, 22,050 Hz."""

    text: str
    voice: str
    audio_N: np.ndarray
    sample_rate: int
    words: tuple[SpeechEvent, ...]
    phonemes: tuple[SpeechEvent, ...]


class SpeechError(Exception):
    """espeak-ng could not say it; the message is one line."""


def grid_sentence(rng: np.random.Generator) -> str:
    """One sentence, each slot uniform."""
    return " ".join(words[rng.integers(len(words))] for words in GRID.values())


def grid_jsgf() -> str:
    """GRID's grammar as JSGF for a recogniser. It also has "zed", which British speakers say for z."""
    rules = [f"<{slot}> = {' | '.join((*words, *_ALSO.get(slot, ())))};" for slot, words in GRID.items()]
    sentence = " ".join(f"<{slot}>" for slot in GRID)
    return "\n".join(["#JSGF V1.0;", "grammar grid;", f"public <sentence> = {sentence};", *rules, ""])


def grid_utterance(*, seed: int, voices: tuple[str, ...] = VOICES) -> Utterance:
    """A random sentence by a random voice, speed and pitch. The same seed gives the same bytes."""
    rng = np.random.default_rng(seed)
    text, voice = grid_sentence(rng), voices[rng.integers(len(voices))]
    return speak(
        text, voice=voice, words_per_minute=int(rng.integers(120, 161)), pitch=int(rng.integers(35, 66))
    )


def speak(text: str, *, voice: str = VOICES[0], words_per_minute: int = 150, pitch: int = 50) -> Utterance:
    """Say words separated by spaces, in a fresh process. SpeechError names the voice or text that failed."""
    words = text.split()
    if not words:
        raise SpeechError(f"there is nothing to say in {text!r}; give words separated by spaces")
    spelled = [_RESPELLED.get(word, word) for word in words]
    request = {
        **_espeak_paths(),
        "text": " ".join(spelled),
        "voice": voice,
        "words_per_minute": words_per_minute,
        "pitch": pitch,
    }
    command = [sys.executable, "-I", "-S", str(_PROCESS)]
    try:
        done = subprocess.run(
            command, input=json.dumps(request).encode(), capture_output=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise SpeechError(
            f"espeak-ng did not finish {text!r} by {voice} within {_TIMEOUT_S:.0f} s"
        ) from error
    if done.returncode != 0:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise SpeechError(said[-1] if said else f"espeak-ng ended with status {done.returncode} on {text!r}")
    head, _, pcm = done.stdout.partition(b"\n")
    fields: dict[str, Any] = json.loads(head)
    audio_N = np.frombuffer(pcm, dtype=np.int16).astype(np.float32) / 32768.0
    rate = int(fields["rate"])
    spoken = {"word": [], "phoneme": []}
    for event in fields["events"]:
        if event["kind"] in spoken:
            spoken[event["kind"]].append(event)
    names = _words_at([event["text"][0] for event in spoken["word"]], words, spelled)
    return Utterance(
        text=" ".join(words),
        voice=voice,
        audio_N=audio_N,
        sample_rate=rate,
        words=_events(names, [event["sample"] for event in spoken["word"]], len(audio_N), rate),
        phonemes=_events(
            [event["name"] for event in spoken["phoneme"]],
            [event["sample"] for event in spoken["phoneme"]],
            len(audio_N),
            rate,
        ),
    )


def _words_at(text_positions: list[int], words: list[str], spelled: list[str]) -> list[str]:
    """The words that start at espeak-ng's 1-based character positions in the text as spelled for it."""
    starts: dict[int, str] = {}
    position = 1
    for word, as_spelled in zip(words, spelled, strict=True):
        starts[position] = word
        position += len(as_spelled) + 1
    return [starts.get(position, "") for position in text_positions]


def _events(names: list[str], starts: list[int], num_samples: int, rate: int) -> tuple[SpeechEvent, ...]:
    ends = [*starts[1:], num_samples]
    return tuple(
        SpeechEvent(name, start / rate, end / rate)
        for name, start, end in zip(names, starts, ends, strict=True)
    )


def _espeak_paths() -> dict[str, str]:
    try:
        import espeakng_loader
    except ImportError as error:
        raise ImportError(
            "speech needs espeakng-loader, which is not installed; pip install 'worldmodel[speech]'"
        ) from error
    return {"library": espeakng_loader.get_library_path(), "data": espeakng_loader.get_data_path()}
