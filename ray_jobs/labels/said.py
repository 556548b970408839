"""What models say of a clip: a text, how sure they are, and where they can tell, when each word is said."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Word:
    """One word of a transcript and when it is said, in seconds."""

    text: str
    start_s: float
    end_s: float
    confidence: float

    def later(self, by_s: float) -> Word:
        return replace(self, start_s=self.start_s + by_s, end_s=self.end_s + by_s)


@dataclass(frozen=True)
class Guess:
    """confidence: mean probability of its tokens. words: None when the model tells no times."""

    text: str
    confidence: float
    words: tuple[Word, ...] | None = None


NOTHING = Guess("", 0.0, ())


def joined(guesses: list[Guess]) -> Guess:
    """Of the parts of a clip, in order. Confidence by number of words; times where all parts have some."""
    heard = [guess for guess in guesses if guess.text]
    if not heard:
        return NOTHING
    lengths = [len(guess.text.split()) for guess in heard]
    confidence = sum(g.confidence * n for g, n in zip(heard, lengths, strict=True)) / sum(lengths)
    words = None
    if all(guess.words is not None for guess in heard):
        words = tuple(word for guess in heard for word in guess.words or ())
    return Guess(" ".join(guess.text for guess in heard), confidence, words)
