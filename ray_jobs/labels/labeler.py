"""The work of one actor: models are loaded once, then clips come in groups and outcomes go back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from avtok.media import ClipError, Limits
from ray_jobs.labels.align import CannotAlign, confidence_of
from ray_jobs.labels.attempts import FAILED, UNREADABLE, each, readable
from ray_jobs.labels.captioner import Captioner
from ray_jobs.labels.ctc import CtcModel
from ray_jobs.labels.loading import first_line
from ray_jobs.labels.marks import LOW_CONFIDENCE, LeftOut, Made, Outcome, Row
from ray_jobs.labels.media import LIMITS, ClipMedia, open_media
from ray_jobs.labels.models import LabelModels
from ray_jobs.labels.recognizers import CtcRecognizer, Recognizer, load_recognizer
from ray_jobs.labels.said import Guess, Word, joined
from ray_jobs.labels.times import cues_json, time_heard, time_written, written_words
from ray_jobs.labels.transcripts import NO_SPEECH, Heard, transcribe

NO_CAPTION, NOT_ALIGNED = "an empty caption", "words cannot be timed"


@dataclass(frozen=True)
class Task:
    """One row of the manifest and the fields that are wanted for it."""

    row: Row
    wanted: frozenset[str]


@dataclass(frozen=True)
class LabelSettings:
    """What every actor is told. limits None: decode in the actor's own process."""

    models: LabelModels
    min_confidence: float
    language: str = ""
    gpu: bool = False
    limits: Limits | None = LIMITS


class Labeler:
    """UserError when a model does not load; afterwards whatever goes wrong with a clip is a reason of it."""

    def __init__(self, settings: LabelSettings) -> None:
        self.settings, models, gpu = settings, settings.models, settings.gpu
        if not gpu:
            torch.set_num_threads(1)
        self.captioner = Captioner(models.captioner, gpu=gpu) if models.captioner else None
        self.recognizer: Recognizer | None = None
        if models.recognizer:
            self.recognizer = load_recognizer(models.recognizer, language=settings.language, gpu=gpu)
        self.aligner: CtcModel | None = None
        if models.aligner and models.aligner == models.recognizer:
            assert isinstance(self.recognizer, CtcRecognizer)
            self.aligner = self.recognizer.ctc
        elif models.aligner:
            self.aligner = CtcModel(models.aligner, gpu=gpu)
        self.reader = open_media(settings.limits)

    def label(self, tasks: Sequence[Task]) -> list[Outcome]:
        """For every task what was made of the wanted fields, or why not."""
        clips = [ClipMedia(task.row, self.reader) for task in tasks]
        outcomes: list[Outcome] = [{} for _ in tasks]
        for i, guess in self._captions(tasks, clips).items():
            outcomes[i]["caption"] = guess
        for i, heard in self._heard(tasks, clips).items():
            outcomes[i]["transcript"] = transcript = self._transcript(heard)
            if "speech" in tasks[i].wanted and isinstance(transcript, Made) and isinstance(heard, list):
                outcomes[i]["speech"] = self._speech(tasks[i].row, clips[i], heard)
        for i, task in enumerate(tasks):
            if "speech" in task.wanted and "transcript" not in task.wanted:
                outcomes[i]["speech"] = self._speech(task.row, clips[i], None)
        return outcomes

    def _captions(self, tasks: Sequence[Task], clips: list[ClipMedia]) -> dict[int, Made | LeftOut]:
        captioner, model = self.captioner, self.settings.models.captioner
        if captioner is None or model is None:
            return {}
        asked = [i for i, task in enumerate(tasks) if "caption" in task.wanted]
        frames = [readable(lambda i=i, count=captioner.num_frames: clips[i].frames(count)) for i in asked]
        guesses = each(captioner.caption, frames)
        return {i: self._judged(guess, model.by, NO_CAPTION) for i, guess in zip(asked, guesses, strict=True)}

    def _heard(self, tasks: Sequence[Task], clips: list[ClipMedia]) -> dict[int, Heard | LeftOut]:
        if self.recognizer is None:
            return {}
        asked = {i: clips[i] for i, task in enumerate(tasks) if "transcript" in task.wanted}
        return transcribe(self.recognizer, asked)

    def _transcript(self, heard: Heard | LeftOut) -> Made | LeftOut:
        model = self.settings.models.recognizer
        assert model is not None
        whole = heard if isinstance(heard, LeftOut) else joined([guess for _, guess in heard])
        return self._judged(whole, model.by, NO_SPEECH)

    def _speech(self, row: Row, clip: ClipMedia, heard: Heard | None) -> Made | LeftOut:
        """Times of what was heard, else of what is written."""
        speakers: list[str] = []
        try:
            if self.aligner is None:
                words = list(joined([guess for _, guess in heard or []]).words or ())
            elif heard is not None:
                words = time_heard(self.aligner, clip, heard)
            else:
                written, speakers = written_words(row)
                words = time_written(self.aligner, clip, written)
        except ClipError as error:
            return LeftOut(UNREADABLE, str(error), is_failure=True)
        except CannotAlign as error:
            return LeftOut(NOT_ALIGNED, str(error))
        except Exception as error:  # of a model, as in `each`
            return LeftOut(FAILED, first_line(error), is_failure=True)
        return self._timed(words, speakers)

    def _timed(self, words: list[Word], speakers: list[str]) -> Made | LeftOut:
        value, confidence = cues_json(words, speakers) if words else "", confidence_of(words)
        return self._judged(Guess(value, confidence), self.settings.models.speech_by, NOT_ALIGNED)

    def _judged(self, guess: Guess | LeftOut, by: str, if_empty: str) -> Made | LeftOut:
        least = self.settings.min_confidence
        if isinstance(guess, LeftOut):
            return guess
        if not guess.text:
            return LeftOut(if_empty)
        if guess.confidence < least:
            told = f"{guess.confidence:.2f} is below {least:g}"
            return LeftOut(LOW_CONFIDENCE, told, confidence=guess.confidence)
        return Made(guess.text, guess.confidence, by)
