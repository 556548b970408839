"""`worldmodel generate`: a prompt becomes a clip, in this process and without Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ray_jobs.cli_output import Json, answer
from ray_jobs.errors import UserError
from ray_jobs.models import find_model

PROMPT = "what is seen; what is said stands in quotes: 'a man says \"bin blue at f two now\"'"


def generate(
    model: Annotated[str, typer.Argument(help="shipped name, exported folder or run")],
    prompt: Annotated[str, typer.Option(help=PROMPT)],
    out: Annotated[Path, typer.Option(help="the .mp4 to write")] = Path("clip.mp4"),
    image: Annotated[Path | None, typer.Option(help="its first picture")] = None,
    video: Annotated[Path | None, typer.Option(help="its beginning, with sound")] = None,
    audio: Annotated[Path | None, typer.Option(help="its sound, which the picture is made for")] = None,
    frames: Annotated[int | None, typer.Option(help="of the whole clip; default: as trained")] = None,
    steps: Annotated[int | None, typer.Option(help="ODE steps a chunk; default: the model's own")] = None,
    guidance: Annotated[
        float | None, typer.Option(help="how far the caption is followed; default: the model's own")
    ] = None,
    speech_guidance: Annotated[float | None, typer.Option(help="and the speech")] = None,
    seed: Annotated[
        int | None, typer.Option(help="the same seed makes the same clip; default: a new one")
    ] = None,
    lora: Annotated[
        str, typer.Option(help="LoRA to generate with: its folder, or the run that made it")
    ] = "",
    lora_scale: Annotated[float, typer.Option(help="how much of it; 1 as trained")] = 1.0,
    explain: Annotated[
        bool, typer.Option("--explain", help="say how the prompt is read; make nothing")
    ] = False,
    as_json: Json = False,
) -> None:
    """A prompt becomes a clip with picture and sound."""
    folder = find_model(model)
    from ray_jobs.progress import ProgressDisplay
    from worldmodel.export import NotAModel
    from worldmodel.lora import LoraError
    from worldmodel.pipeline import BadRequest, WorldModelPipeline
    from worldmodel.prompt import Prompt, PromptError

    if out.suffix.lower() != ".mp4":
        raise UserError(f"--out {out}: clips are written as .mp4; use {out.with_suffix('.mp4')}")
    try:
        pipe = WorldModelPipeline.from_pretrained(folder)
        pipe.name = model
        read = Prompt.parse(prompt)
        if explain:
            found = explained(read, pipe.cfg)
            answer(found, as_json, "\n".join(f"{key}: {_words(value)}" for key, value in found.items()))
            read.check(pipe.cfg.model)
            return
        if lora:
            pipe.load_lora(lora, scale=lora_scale)
        with ProgressDisplay() as display:
            clip = pipe(
                read,
                image=image,
                video=video,
                audio=audio,
                num_frames=frames,
                num_inference_steps=steps,
                guidance_scale=guidance,
                speech_guidance_scale=speech_guidance,
                seed=seed,
                progress=lambda done, total: display("generate", {"done": done, "total": total}),
            )
    except (PromptError, BadRequest, NotAModel, LoraError) as error:
        raise UserError(str(error)) from None
    clip.save(out)
    found = {"out": str(out), "seed": clip.seed, "sha256": clip.sha256, "frames": len(clip.frames)}
    answer(found, as_json, f"{out}: {len(clip.frames) / clip.frame_rate:g} s, seed {clip.seed}")


def explained(prompt: Any, cfg: Any) -> dict[str, Any]:
    """How a prompt is read, and how much of what the model can read it takes."""
    rooms = {"caption": cfg.model.text_tokens, "speech": cfg.model.speech_bytes}
    return {
        name: {"text": text, "bytes": len(text.encode()), "of": rooms[name]}
        for name, text in (("caption", prompt.caption), ("speech", prompt.speech))
    } | {
        "clip": f"{cfg.data.clip_s:g} s, {cfg.data.size[0]}x{cfg.data.size[1]} at {cfg.data.fps} frames/s, "
        f"{cfg.data.sample_rate} Hz",
        "steps": cfg.rollout.steps,
    }


def _words(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    return f"{value['text']!r}, {value['bytes']} of {value['of']} bytes"
