"""What the shipped codecs keep: pictures, attacks and words, also under the errors that a flow model makes.

Prediction: a network of two million parameters adds 2 dB to the principal components at the same 16 pixel
values a latent value, and coding one second of picture and sound takes a core some 30 ms.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from avtok.load import codec_folder
from ray_jobs.bench import Measured
from ray_jobs.runtime_env import ROOT
from ray_jobs.tokenizer_eval import evaluate_codecs
from worldmodel.config import CodecConfig

FALLBACK = ("pca-4x8x8-48", "logmel-64")
KEYS = (
    "video_psnr_db_bounce",
    "video_psnr_db_real",
    "worst_psnr_db_real",
    "wer_after_minus_before",
    "wer_real_after_minus_before",
    "wer_at_noise_02",
    "psnr_at_noise_02",
    "real_time_factor",
)


def run(smoke: bool) -> Measured:
    """The codecs that configs name by default, and the ones without weights beside them."""
    media = Path(os.environ.get("WORLDMODEL_MEDIA", ROOT.parent / "shared" / "media"))
    ours = CodecConfig()
    found = str(media) if media.is_dir() and not smoke else None
    settings = {"media": found, "sentences": 4 if smoke else 60, "renders": 2 if smoke else 24}
    measured = evaluate_codecs(ours.video, ours.audio, **settings)
    fallback = evaluate_codecs(*FALLBACK, **settings)
    figures = {key: measured[key] for key in KEYS}
    figures["onset_error_ms"] = measured["onset_error_ms_p95"]
    figures["size_mb"] = (
        sum(file.stat().st_size for name in (ours.video, ours.audio) for file in codec_folder(name).iterdir())
        / 1e6
    )
    return Measured(
        figures=figures,
        raw=measured,
        n=measured["words"],
        baseline={"codecs": FALLBACK, **{key: fallback[key] for key in (*KEYS, "onset_error_ms_p95")}},
        config=json.dumps({"video": ours.video, "audio": ours.audio, **settings, "media": bool(found)})
        + "\n",
    )
