"""`worldmodel tokenizer train | measure | eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ray_jobs.cli_output import Json, Set, answer, short

tokenizer_app = typer.Typer(no_args_is_help=True, help="Make and measure codecs.")


@tokenizer_app.command("train")
def tokenizer_train(
    sources: Annotated[
        list[str] | None,
        typer.Argument(help="beside the recipe's: embedded worlds, `speech`, folders or manifests of clips"),
    ] = None,
    out: Annotated[Path, typer.Option(help="folder of the codec")] = Path("codec"),
    recipe: Annotated[Path | None, typer.Option(help="YAML, see configs/codecs/; none: components")] = None,
    overrides: Set = None,
    as_json: Json = False,
) -> None:
    """Train a codec: components of 4x8x8 patches, or a network for pictures or sound."""
    from ray_jobs.codec_recipe import CodecRecipe
    from ray_jobs.progress import ProgressDisplay
    from ray_jobs.tokenizer_train import train_codec
    from worldmodel.load_config import load_as

    with ProgressDisplay() as display:
        facts = train_codec(load_as(CodecRecipe, recipe, overrides), sources or [], out=out, say=display)
    answer(facts, as_json, f"{facts['codec']}: {facts['sources']} sources")


@tokenizer_app.command("measure")
def tokenizer_measure(
    folder: Annotated[Path, typer.Argument(help="a diffusers or transformers autoencoder")],
    fps: int = 16,
    size: Annotated[int, typer.Option(help="height and width in pixels")] = 64,
    as_json: Json = False,
) -> None:
    """Probe a pretrained autoencoder and write codec.json: then `pretrained:FOLDER` is a codec."""
    from ray_jobs.tokenizer_measure import measure_folder

    spec = measure_folder(folder, fps=fps, size_px=size)
    answer(spec, as_json, "\n".join(f"{key}: {short(value)}" for key, value in spec.items()))


@tokenizer_app.command("eval")
def tokenizer_eval(
    video: str = "patchconv-4x8x8-48",
    audio: str = "spectral-32",
    media: Annotated[str | None, typer.Option(help="folder of real clips")] = None,
    sentences: Annotated[int, typer.Option(help="synthetic sentences for the word error rate")] = 60,
    seed: int = 0,
    as_json: Json = False,
) -> None:
    """PSNR, onset error, word error rate before and after, speed."""
    from ray_jobs.tokenizer_eval import evaluate_codecs

    figures = evaluate_codecs(video, audio, media=media, sentences=sentences, seed=seed)
    answer(figures, as_json, "\n".join(f"{key}: {short(value)}" for key, value in figures.items()))
