"""World `talker`: a face that says sentences of GRID's grammar, its mouth following the phonemes.

Needs worldmodel[speech]. Each utterance is made in a process of its own, so the same seed gives the same
bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from worldmodel.worlds.face import HAIR, SHIRTS, SKIN, FaceLook, draw_face
from worldmodel.worlds.mouth import mouth_track
from worldmodel.worlds.resample import resampled
from worldmodel.worlds.speech import VOICES, SpeechEvent, grid_sentence, speak
from worldmodel.worlds.truth import Episode, Truth

# T frames, N samples.

WOMEN = ("f1", "f2", "f3", "f5")
PEAK = 0.8
BLINK_S = 0.15
HELD_OUT_VOICES = ("en-us+f5", "en-us+m6")  # of the split `ood_voice`


@dataclass(frozen=True)
class TalkerSettings:
    """lead_s: silence before the first word. Sentences that outlast a clip end with it, in the middle of a
    word."""

    world: str = "talker"
    split: str = "in"
    voices: tuple[str, ...] = tuple(voice for voice in VOICES if voice not in HELD_OUT_VOICES)
    words_per_minute: tuple[int, int] = (165, 190)
    pitch: tuple[int, int] = (35, 65)
    lead_s: tuple[float, float] = (0.05, 0.2)
    size_px: int = 64
    fps: int = 16
    sample_rate: int = 16000

    def __post_init__(self) -> None:
        if unknown := [voice for voice in self.voices if voice not in VOICES]:
            raise ValueError(f"voices must be some of {', '.join(VOICES)}, got {unknown}")
        if not self.voices or min(self.size_px, self.fps, self.sample_rate) <= 0:
            raise ValueError(f"voices must not be empty, size_px, fps and sample_rate positive, got {self}")


TALKER = {
    "in": TalkerSettings(),
    "ood_voice": replace(TalkerSettings(), split="ood_voice", voices=HELD_OUT_VOICES),
}


def talk(
    settings: TalkerSettings, *, seed: int, duration_s: float, text: str = "", voice: str = ""
) -> Episode:
    """One clip of a face that speaks. The same arguments give the same bytes.

    text, voice: instead of the sentence and voice that the seed draws. ValueError for a clip without a frame
    or an unknown voice, SpeechError for what espeak-ng cannot say.
    """
    if voice and voice not in VOICES:  # espeak-ng would take its plain one without a word
        raise ValueError(f"no voice is named {voice!r}; there is {', '.join(VOICES)}")
    num_frames, num_samples = round(duration_s * settings.fps), round(duration_s * settings.sample_rate)
    if num_frames < 1:
        raise ValueError(
            f"duration_s={duration_s} is less than one frame at {settings.fps} fps; give more seconds"
        )
    rng = np.random.default_rng(seed)
    sentence = grid_sentence(rng)
    drawn = settings.voices[rng.integers(len(settings.voices))]
    said = speak(
        text or sentence,
        voice=voice or drawn,
        words_per_minute=int(rng.integers(settings.words_per_minute[0], settings.words_per_minute[1] + 1)),
        pitch=int(rng.integers(settings.pitch[0], settings.pitch[1] + 1)),
    )
    lead_s = round(rng.uniform(*settings.lead_s) * settings.sample_rate) / settings.sample_rate
    look = _look(said.voice, rng)
    words, phonemes = (
        [replace(e, start_s=e.start_s + lead_s, end_s=e.end_s + lead_s) for e in events]
        for events in (said.words, said.phonemes)
    )
    mouth_T2 = mouth_track(phonemes, np.arange(num_frames) / settings.fps)
    video_THWC = draw_face(mouth_T2, _blinks(rng, num_frames, settings.fps), look, size_px=settings.size_px)
    audio_N = np.zeros(num_samples, np.float32)
    voice_N = resampled(said.audio_N, said.sample_rate, settings.sample_rate)
    voice_N = voice_N * np.float32(PEAK / max(float(np.abs(voice_N).max()), 1e-6))
    start = round(lead_s * settings.sample_rate)
    audio_N[start : start + len(voice_N)] = voice_N[: num_samples - start]
    heard = tuple(word for word in words if word.end_s <= duration_s)
    none = np.zeros((num_frames, 0))
    truth = Truth(
        world=settings.world,
        split=settings.split,
        seed=seed,
        fps=settings.fps,
        sample_rate=settings.sample_rate,
        duration_s=num_frames / settings.fps,
        caption=_caption(said.voice, look, rng),
        materials=(),
        colors=(),
        radius_K=np.zeros(0),
        mass_K=np.zeros(0),
        positions_TK2=none[..., None].repeat(2, axis=2),
        velocities_TK2=none[..., None].repeat(2, axis=2),
        visible_TK=none,
        contacts=(),
        transcript=_heard_text(said.text, words, heard),
        voice=said.voice,
        words=heard,
        phonemes=tuple(p for p in phonemes if p.start_s < duration_s),
        mouth_T2=mouth_T2,
    )
    return Episode(video_THWC, audio_N, truth)


def is_woman(voice: str) -> bool:
    return voice.partition("+")[2] in WOMEN


def _heard_text(text: str, words: Sequence[SpeechEvent], heard: Sequence[SpeechEvent]) -> str:
    """Up to the last word that is heard whole. espeak-ng runs small words together, without an event of their
    own."""
    if len(heard) == len(words):
        return text
    names, at = text.split(), 0
    for word in heard:
        at = names.index(word.name, at) + 1
    return " ".join(names[:at])


def _look(voice: str, rng: np.random.Generator) -> FaceLook:
    hair, shirt = (list(names)[rng.integers(len(names))] for names in (HAIR, SHIRTS))
    center = (0.5 + rng.uniform(-0.05, 0.05), 0.44 + rng.uniform(-0.03, 0.03))
    return FaceLook(hair, shirt, int(rng.integers(len(SKIN))), is_woman(voice), center)


def _blinks(rng: np.random.Generator, num_frames: int, fps: int) -> np.ndarray:
    """bool [T]: a blink every two to four seconds."""
    shut_T, at = np.zeros(num_frames, bool), rng.uniform(0, 3)
    while at * fps < num_frames:
        shut_T[round(at * fps) : round((at + BLINK_S) * fps)] = True
        at += rng.uniform(2, 4)
    return shut_T


def _caption(voice: str, look: FaceLook, rng: np.random.Generator) -> str:
    """Half of them say how the speaker looks: prompts say more or less, too."""
    who = "a woman" if is_woman(voice) else "a man"
    return (
        f"{who} with {look.hair} hair in a {look.shirt} shirt says" if rng.uniform() < 0.5 else f"{who} says"
    )


def word_events(truth: Truth) -> list[dict[str, float | str]]:
    """The words as a manifest's `speech`."""
    return [
        {"start": round(w.start_s, 4), "end": round(w.end_s, 4), "speaker": truth.voice, "text": w.name}
        for w in truth.words
    ]
