"""What a recogniser hears: pocketsphinx with GRID's closed grammar. Needs the extra worldmodel[speech]."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from worldmodel.worlds.resample import resampled
from worldmodel.worlds.speech import grid_jsgf

# N samples.

RECOGNISER_RATE_HZ = 16000
_PADDING_S = 0.25  # the grammar wants silence around the sentence; cuts often have none
_DITHER_STEPS = 3.0
_HEARD_AS = {"zed": "z"}


def transcribe(audio_N: np.ndarray, sample_rate: int) -> str:
    """Words of GRID's grammar heard in float32 mono audio, "" if none. Each call stands for itself."""
    audio_N = np.asarray(audio_N, dtype=np.float32)
    if audio_N.ndim != 1:
        raise ValueError(
            f"transcribe takes mono audio of shape [N], got {audio_N.shape}; average the channels"
        )
    audio_N = resampled(audio_N, sample_rate, RECOGNISER_RATE_HZ)
    padded_N = np.pad(audio_N, round(_PADDING_S * RECOGNISER_RATE_HZ))
    # Digital silence misleads the recogniser (word error 0.09 against 0.04 on clean synthetic speech), so it
    # hears three 16-bit steps of noise. Always the same: its own dither depends on what it heard before.
    dither_N = np.random.default_rng(0).standard_normal(len(padded_N)) * _DITHER_STEPS
    pcm = (np.clip(padded_N, -1.0, 1.0) * 32760.0 + dither_N).clip(-32768, 32767).astype(np.int16).tobytes()
    decoder = _grid_decoder()
    decoder.start_utt()
    # full_utt: the mean is taken over this utterance, not carried on from the one before
    decoder.process_raw(pcm, full_utt=True)
    decoder.end_utt()
    heard = decoder.hyp()
    words: list[str] = heard.hypstr.split() if heard else []
    return " ".join(_HEARD_AS.get(word, word) for word in words)


def word_error_rate(references: Sequence[str], heard: Sequence[str]) -> float:
    """Wrong, missing and added words over the words of all references (a fraction; it can exceed 1)."""
    try:
        import jiwer
    except ImportError as error:
        raise ImportError(
            "word error rate needs jiwer, which is not installed; pip install 'worldmodel[speech]'"
        ) from error
    if len(references) != len(heard) or not references:
        raise ValueError(
            "word_error_rate needs as many transcripts as references, and at least one; "
            f"got {len(heard)} and {len(references)}"
        )
    return float(jiwer.wer(list(references), list(heard)))


@cache
def _grid_decoder() -> Any:
    try:
        import pocketsphinx
    except ImportError as error:
        raise ImportError(
            "recognition needs pocketsphinx, which is not installed; pip install 'worldmodel[speech]'"
        ) from error
    decoder = pocketsphinx.Decoder(
        samprate=RECOGNISER_RATE_HZ, lm=None, loglevel="FATAL", dither=False, cmn="batch"
    )
    decoder.add_jsgf_string("grid", grid_jsgf())
    decoder.activate_search("grid")
    return decoder
