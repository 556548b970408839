"""`worldmodel label`: what is missing in a manifest, made by local models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ray_jobs.cli_output import Address, Json, answer


def label(
    manifest: Annotated[str, typer.Argument(help="manifest that `worldmodel index` wrote")],
    out: Annotated[Path, typer.Option(help="manifest to write; may be the same")],
    captioner: Annotated[str, typer.Option(help="folder of a transformers image-to-text model")] = "",
    recognizer: Annotated[
        str, typer.Option(help="folder of a transformers speech recogniser, or pocketsphinx")
    ] = "",
    aligner: Annotated[
        str, typer.Option(help="folder of a transformers CTC model: when words are said")
    ] = "",
    language: Annotated[str, typer.Option(help="of speech, such as en; default: the recogniser's")] = "",
    min_confidence: Annotated[float, typer.Option(help="below it a label is left out")] = 0.3,
    redo: Annotated[
        bool, typer.Option("--redo", help="make automatic labels anew; those of people stay")
    ] = False,
    actors: Annotated[int | None, typer.Option(help="processes; default: as many as are worth it")] = None,
    gpus: Annotated[float, typer.Option(help="of each process, such as 0.25; default: CPU")] = 0.0,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Captions, transcripts and word times by local models, where there are none. What people wrote stays."""
    from dataclasses import asdict

    from pydantic import ValidationError

    from ray_jobs.errors import UserError, storage_errors_in_words
    from ray_jobs.labels.models import find_models
    from worldmodel.config import LabelConfig

    try:
        cfg = LabelConfig(
            captioner=captioner,
            recognizer=recognizer,
            aligner=aligner,
            language=language,
            min_confidence=min_confidence,
        )
    except ValidationError:
        raise UserError(f"--min-confidence must lie between 0 and 1, got {min_confidence}") from None
    if not (captioner or recognizer or aligner):
        raise UserError("nothing to label with; give --captioner, --recognizer or --aligner")
    find_models(cfg)  # before a cluster is started
    from ray_jobs.cluster import connect
    from ray_jobs.labels.run import label_manifest
    from ray_jobs.progress import ProgressDisplay

    connect(address)
    with ProgressDisplay() as display, storage_errors_in_words(out):
        result = label_manifest(
            manifest,
            cfg,
            out=str(out),
            redo=redo,
            actors=actors,
            num_gpus=gpus,
            progress=lambda done, total: display("label", {"done": done, "total": total}),
        )
    lines = [f"{result.clips} clips: {result.manifest}"]
    lines += [f"made: {counted(result.made)}", f"kept of people: {counted(result.kept)}"]
    lines += [f"left out: {reason}: {count}" for reason, count in result.left_out.items()]
    answer(asdict(result), as_json, "\n".join(lines))


def counted(by_field: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in by_field.items())
