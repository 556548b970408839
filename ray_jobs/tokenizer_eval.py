"""Measure a pair of codecs on renders, speech and real clips: what `worldmodel tokenizer eval` prints."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from avtok import evaluate
from avtok.decode import ClipError, decode_clip, probe
from avtok.load import load_codec
from worldmodel.worlds.bounce import Episode, simulate
from worldmodel.worlds.recognise import transcribe, word_error_rate
from worldmodel.worlds.settings import world_settings
from worldmodel.worlds.speech import grid_utterance

# N samples.

FPS, RATE_HZ, SIZE = 16, 16000, (64, 64)
NUM_RENDERS, RENDER_S, LONGEST_REAL_S = 24, 4.0, 10.0
ALONE_S = 0.08  # onsets are measured where no other contact is nearer
NOISE = 0.2  # of a latent's rms: about what a flow model gets wrong
REAL_PICTURES = ("general", "speech", "actions")
NOISE_FLOOR = 1e-3  # recognisers misread digital silence; recordings have a room. The same on both sides
_RANKS = "ace two three four five six seven eight nine ten jack queen king"
_CARDS_JSGF = f"""#JSGF V1.0;
grammar cards;
public <hand> = <card>+;
<card> = ({_RANKS.replace(" ", " | ")}) [of (clubs | diamonds | hearts | spades)];
"""


def evaluate_codecs(
    video: str,
    audio: str,
    *,
    media: str | None = None,
    sentences: int = 60,
    renders: int = NUM_RENDERS,
    seed: int = 0,
) -> dict[str, Any]:
    """PSNR in dB, onset error in ms, word error rates as fractions, media seconds per CPU second both ways.

    media: folder of real clips with transcripts.json, or None: then the numbers of real clips are None. Files
    that the picture codec was fitted to are left out. ValueError for an unknown codec or too few sentences.
    """
    if sentences < 1:
        raise ValueError(f"sentences must be at least 1, got {sentences}")
    video_codec, audio_codec = load_codec(video), load_codec(audio)
    episodes = [
        simulate(world_settings("bounce"), seed=seed + index, duration_s=RENDER_S) for index in range(renders)
    ]

    pictures = [episode.video_THWC for episode in episodes]
    seen, video_speed = evaluate.round_trip(video_codec, pictures, units_per_s=FPS)
    impacts = [episode.audio_N for episode in episodes]
    heard, audio_speed = evaluate.round_trip(audio_codec, impacts, units_per_s=RATE_HZ)
    lateness_ms = np.concatenate(
        [
            evaluate.onset_errors_ms(before, after, _onsets_s(episode), sample_rate=RATE_HZ)
            for episode, before, after in zip(episodes, impacts, heard, strict=True)
        ]
    )

    said = [grid_utterance(seed=seed + index) for index in range(sentences)]
    speech = [_at_rate(utterance.audio_N, utterance.sample_rate) for utterance in said]
    spoken, _ = evaluate.round_trip(audio_codec, speech, units_per_s=RATE_HZ)
    texts = [utterance.text for utterance in said]
    before = _word_errors(speech, texts, _hear_grid)
    after = _word_errors(spoken, texts, _hear_grid)
    noisy_speech = [_with_noise(audio_codec, clip, seed + index) for index, clip in enumerate(speech)]
    noisy_pictures = [_with_noise(video_codec, clip, seed + index) for index, clip in enumerate(pictures)]
    at_noise = _word_errors(noisy_speech, texts, _hear_grid)
    figures: dict[str, Any] = {
        "video_psnr_db_bounce": float(
            np.mean([evaluate.psnr_db(a, b) for a, b in zip(pictures, seen, strict=True)])
        ),
        "onset_error_ms": float(np.median(np.abs(lateness_ms))),
        "onset_error_ms_p95": float(np.quantile(np.abs(lateness_ms), 0.95)),
        "log_spectral_distance_db": float(
            np.mean([evaluate.log_spectral_distance_db(a, b) for a, b in zip(speech, spoken, strict=True)])
        ),
        "wer_before": _rate(before),
        "wer_after": _rate(after),
        "wer_after_minus_before": _rate(after) - _rate(before),
        "wer_at_noise_02": _rate(at_noise),
        "psnr_at_noise_02": float(
            np.mean([evaluate.psnr_db(a, b) for a, b in zip(pictures, noisy_pictures, strict=True)])
        ),
        "words": int(before[1].sum()),
        "wer_after_ci": list(evaluate.bootstrap_interval(*after, seed=seed)),
        "real_time_factor": 1 / (1 / video_speed + 1 / audio_speed),  # both streams of one second of media
    }
    trained_on = frozenset(getattr(video_codec, "trained_on", ()))
    return figures | _real_pictures(video_codec, media, trained_on) | _real_speech(audio_codec, media, seed)


def _onsets_s(episode: Episode) -> list[float]:
    times_s = episode.truth.contact_times_s
    return [
        float(time_s)
        for time_s in times_s
        if time_s > ALONE_S and (np.abs(times_s - time_s) < ALONE_S).sum() == 1
    ]


def _with_noise(codec: Any, clip: np.ndarray, seed: int) -> np.ndarray:
    """Decoded from latents with Gaussian noise; latents have unit rms."""
    latents = codec.encode(clip)
    noise = np.random.default_rng(seed).standard_normal(tuple(latents.shape), dtype=np.float32)
    return codec.decode(latents + NOISE * noise)


def _real_pictures(codec: Any, media: str | None, trained_on: frozenset[str]) -> dict[str, Any]:
    scores_db: dict[str, float] = {}
    root = Path(media) if media else None
    for path in sorted(p for name in REAL_PICTURES for p in (root / name).glob("*")) if root else []:
        name = str(path.relative_to(root)) if root else ""
        if name in trained_on or not path.is_file():
            continue
        try:
            info = probe(str(path))
            end_s = int(min(info.duration_s, LONGEST_REAL_S) * FPS / 4) * 4 / FPS
            if not info.has_video or not end_s:
                continue
            clip = decode_clip(str(path), start_s=0, end_s=end_s, fps=FPS, size=SIZE, sample_rate=RATE_HZ)
        except ClipError:
            continue  # texts and arrays lie beside the clips
        if clip.video_THWC is not None:
            scores_db[name] = evaluate.psnr_db(clip.video_THWC, codec.decode(codec.encode(clip.video_THWC)))
    values = list(scores_db.values())
    return {
        "video_psnr_db_real": float(np.mean(values)) if values else None,
        "worst_psnr_db_real": min(values, default=None),
        "video_psnr_db_by_clip": scores_db,
    }


def _real_speech(codec: Any, media: str | None, seed: int) -> dict[str, Any]:
    """GRID's clips under its grammar and pocketsphinx's card hands under theirs, pooled."""
    before: list[tuple[float, float]] = []
    after: list[tuple[float, float]] = []
    listing = Path(media) / "transcripts.json" if media else None
    if listing is not None and listing.is_file():
        transcripts = json.loads(listing.read_text(encoding="utf-8"))
        hear_cards = _grammar_recogniser(_CARDS_JSGF, "cards")
        for name in sorted(transcripts):
            is_grid, is_cards = "speech/grid_" in name, "speech_audio/ps_cards_" in name
            path = listing.parent / name
            if not (is_grid or is_cards) or not path.is_file():
                continue
            info = probe(str(path))
            clip = decode_clip(
                str(path), start_s=0, end_s=info.duration_s, fps=FPS, size=SIZE, sample_rate=RATE_HZ
            )
            if clip.audio_N is None:
                raise ClipError(
                    f"{path}: {info.reason or 'has no sound'}; transcripts.json says that it speaks"
                )
            hear, text = (_hear_grid if is_grid else hear_cards), transcripts[name]["text"]
            decoded_N = codec.decode(codec.encode(clip.audio_N))
            for results, sound_N in ((before, clip.audio_N), (after, decoded_N)):
                wrong, words = _word_errors([sound_N], [text], hear)
                results.append((float(wrong[0]), float(words[0])))
    if not before:
        return {
            "wer_real_before": None,
            "wer_real_after": None,
            "wer_real_after_minus_before": None,
            "wer_real_ci": None,
            "wer_real_words": 0,
        }
    wrong_before, words = np.array(before).T
    wrong_after = np.array(after)[:, 0]
    return {
        "wer_real_before": _rate((wrong_before, words)),
        "wer_real_after": _rate((wrong_after, words)),
        "wer_real_after_minus_before": _rate((wrong_after, words)) - _rate((wrong_before, words)),
        "wer_real_ci": list(evaluate.bootstrap_interval(wrong_after, words, seed=seed)),
        "wer_real_words": int(words.sum()),
    }


def _word_errors(
    clips: Sequence[np.ndarray], texts: Sequence[str], hear: Callable[[np.ndarray], str]
) -> tuple[np.ndarray, np.ndarray]:
    return evaluate.word_errors(
        clips, texts, transcribe=hear, word_error_rate=lambda said, words: word_error_rate([said], [words])
    )


def _rate(result: tuple[np.ndarray, np.ndarray]) -> float:
    return float(result[0].sum() / result[1].sum())


def _with_room(audio_N: np.ndarray) -> np.ndarray:
    noise_N = np.random.default_rng(0).standard_normal(len(audio_N))
    return (audio_N + NOISE_FLOOR * noise_N).astype(np.float32)


def _hear_grid(audio_N: np.ndarray) -> str:
    return transcribe(_with_room(audio_N), RATE_HZ)


def _grammar_recogniser(jsgf: str, name: str) -> Callable[[np.ndarray], str]:
    import pocketsphinx  # optional; worldmodel.worlds.recognise has said so if it is missing

    decoder = pocketsphinx.Decoder(samprate=RATE_HZ, lm=None, loglevel="FATAL", cmn="batch")
    decoder.add_jsgf_string(name, jsgf)
    decoder.activate_search(name)

    def hear(audio_N: np.ndarray) -> str:
        decoder.start_utt()
        pcm = (np.clip(_with_room(audio_N), -1, 1) * 32767).astype(np.int16).tobytes()
        decoder.process_raw(pcm, full_utt=True)
        decoder.end_utt()
        result = decoder.hyp()
        return result.hypstr if result else ""

    return hear


def _at_rate(audio_N: np.ndarray, sample_rate: int) -> np.ndarray:
    import torch
    from torchaudio.functional import resample

    return resample(torch.from_numpy(audio_N), sample_rate, RATE_HZ).clamp(-1, 1).numpy()
