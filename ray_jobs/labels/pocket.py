"""pocketsphinx as a recogniser of American English: its weights come with it, nothing is downloaded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ray_jobs.labels.said import NOTHING, Guess, Word

# N samples at 16 kHz.

RATE_HZ, FRAME_S = 16000, 0.01
PADDING_S = 0.25  # it wants silence around what is said
DITHER_STEPS = 3.0  # of 16 bits: digital silence misleads it; always the same noise


class PocketRecognizer:
    """Each call stands for itself: nothing is carried on from the sound before."""

    window_s, batch = 30.0, 1

    def __init__(self) -> None:
        import pocketsphinx

        self.decoder = pocketsphinx.Decoder(samprate=RATE_HZ, loglevel="FATAL", dither=False, cmn="batch")

    def hear(self, sounds: Sequence[np.ndarray]) -> list[Guess]:
        return [self._hear(sound_N) for sound_N in sounds]

    def _hear(self, sound_N: np.ndarray) -> Guess:
        padded_N = np.pad(sound_N, round(PADDING_S * RATE_HZ))
        dither_N = np.random.default_rng(0).standard_normal(len(padded_N)) * DITHER_STEPS
        pcm_N = (np.clip(padded_N, -1, 1) * 32760 + dither_N).clip(-32768, 32767).astype(np.int16)
        self.decoder.start_utt()
        self.decoder.process_raw(pcm_N.tobytes(), full_utt=True)
        self.decoder.end_utt()
        if self.decoder.hyp() is None:
            return NOTHING
        words = tuple(
            Word(
                segment.word.partition("(")[0],  # "read(2)" is read, said in the second way
                max(0.0, segment.start_frame * FRAME_S - PADDING_S),
                min(len(sound_N) / RATE_HZ, (segment.end_frame + 1) * FRAME_S - PADDING_S),
                float(segment.prob),
            )
            for segment in self.decoder.seg()
            if segment.word[0] not in "<[+"  # silence and noises
        )
        if not words:
            return NOTHING
        confidence = sum(word.confidence for word in words) / len(words)
        return Guess(" ".join(word.text for word in words), confidence, words)
