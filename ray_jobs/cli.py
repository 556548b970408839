"""The `worldmodel` command. Each subcommand imports only what it needs, so that --help and mistakes are
quick."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from ray_jobs.cli_collect import collect
from ray_jobs.cli_data import data_app, index
from ray_jobs.cli_env import env
from ray_jobs.cli_forget import forget
from ray_jobs.cli_generate import generate
from ray_jobs.cli_jobs import PASS_ON, doctor, submit
from ray_jobs.cli_kuberay import kuberay
from ray_jobs.cli_label import label
from ray_jobs.cli_lerobot import export_lerobot
from ray_jobs.cli_output import INTERRUPTED, Address, Json, Set, answer, keep_standard_output, short
from ray_jobs.cli_prompts import check_prompts
from ray_jobs.cli_serve import serve
from ray_jobs.cli_tokenizer import tokenizer_app
from ray_jobs.errors import UserError, storage_problem
from ray_jobs.interrupt import sigterm_as_ctrl_c
from worldmodel.load_config import ConfigError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train joint audio-video world models on Ray, continue clips, check that they behave like a world.",
)
app.add_typer(data_app, name="data")
app.add_typer(tokenizer_app, name="tokenizer")


@app.command()
def demo(
    out: Annotated[Path | None, typer.Option(help="run folder; default: runs/demo")] = None,
    world: Annotated[str | None, typer.Option(help="embedded world; default: bounce_one")] = None,
    clips: Annotated[int | None, typer.Option(help="clips to render; default: 640")] = None,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="no training: the shipped model, within a minute")
    ] = False,
    overrides: Set = None,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """The whole job on the embedded world: render, index, stream, train, roll out, check, report."""
    from ray_jobs import demo, demo_pretrained
    from ray_jobs.progress import ProgressDisplay

    with ProgressDisplay() as display:
        if pretrained:
            if overrides:
                raise UserError("--set: nothing is trained with --pretrained; leave one of them out")
            result = demo_pretrained.run_pretrained(
                out=(out or Path("runs/demo-pretrained")).resolve(),
                world=world or demo_pretrained.WORLD,
                clips=demo_pretrained.CLIPS if clips is None else clips,
                say=display,
                address=address,
            )
        else:
            result = demo.run_demo(
                out=(out or Path("runs/demo")).resolve(),
                world=world or "bounce_one",
                clips=640 if clips is None else clips,
                overrides=overrides or [],
                command=_command(),
                say=display,
                address=address,
            )
    summary = {
        "run": str(result.run),
        "report": str(result.report),
        "status": result.status,
        "wall_s": round(result.wall_s, 1),
        "startup_s": round(result.startup_s, 1),
        "position_error_025s_over_frozen": result.checks.get("position_error_025s_over_frozen"),
    }
    answer(summary, as_json, f"report: {result.report}")
    _exit_if_stopped(result.status)


@app.command()
def render(
    world: Annotated[str, typer.Argument(help="embedded world: bounce_one, bounce, pusher or talker")],
    out: Annotated[Path, typer.Option(help="folder for the clips")],
    clips: Annotated[int, typer.Option(help="number of clips")] = 64,
    seconds: Annotated[float, typer.Option(help="length of a clip")] = 2.0,
    split: Annotated[str, typer.Option(help="in, ood_speed, ood_size, ood_count or ood_voice")] = "in",
    seed: int = 0,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Embedded world -> .mp4 clips and exact truth, as Ray tasks."""
    from ray_jobs.cluster import connect
    from ray_jobs.progress import ProgressDisplay
    from ray_jobs.render import check_render
    from ray_jobs.render import render as render_clips

    check_render(world, clips=clips, out=out, duration_s=seconds, split=split)
    connect(address)
    with ProgressDisplay() as display:
        manifest = render_clips(
            world,
            clips=clips,
            out=str(out),
            seed=seed,
            duration_s=seconds,
            split=split,
            progress=lambda done, total: display("render", {"done": done, "total": total}),
        )
    answer({"manifest": manifest, "clips": clips}, as_json, f"{clips} clips: {manifest}")


app.command()(index)


@app.command()
def tokenize(
    config: Annotated[Path, typer.Argument(help="YAML of the run")],
    overrides: Set = None,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Fill the latent cache (data.cache) ahead of training."""
    from ray_jobs.preflight import check_given
    from ray_jobs.resolve import resolved
    from worldmodel.load_config import load_config

    cfg = resolved(load_config(config, overrides))  # as train does: both claim the same name
    check_given(cfg)
    from ray_jobs.cluster import connect
    from ray_jobs.progress import ProgressDisplay
    from ray_jobs.tokenize import tokenize as fill
    from ray_jobs.train import prepare

    connect(address)
    _, plan, _ = prepare(cfg, _command())
    with ProgressDisplay() as display:
        counts = fill(cfg, plan, lambda done, total: display("tokenize", {"done": done, "total": total}))
    answer(
        counts, as_json, ", ".join(f"{k} {len(v) if isinstance(v, list) else v}" for k, v in counts.items())
    )


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="YAML of the run")],
    overrides: Set = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="what it would take; no cluster")] = False,
    cluster: Annotated[
        str | None, typer.Option(help="for --dry-run: a GPU's name, such as h100, or a YAML file of numbers")
    ] = None,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """The training job, with rollouts, checks and report at its end. The same command resumes."""
    from ray_jobs.preflight import check_given
    from ray_jobs.resolve import resolved
    from worldmodel.load_config import load_config

    cfg = resolved(load_config(config, overrides))
    if dry_run:
        from ray_jobs.dry_run import answer_dry_run

        return answer_dry_run(cfg, cluster, as_json)
    if cluster is not None:
        raise UserError("--cluster only says what --dry-run compares with; add --dry-run, or leave it out")
    check_given(cfg)  # before the imports that cost seconds
    from ray_jobs.cluster import connect
    from ray_jobs.model_fit import check_layout
    from ray_jobs.progress import ProgressDisplay
    from ray_jobs.train_and_report import train_and_report

    check_layout(cfg)
    with ProgressDisplay() as display:
        display("start", {})
        connect(address, commits=True)
        trained, report = train_and_report(cfg, command=_command(), say=display)
    summary = {"run": str(trained.run), "status": trained.status, "step": trained.step, "report": str(report)}
    answer(summary, as_json, f"report: {report}")
    _exit_if_stopped(trained.status)


@app.command()
def rollout(
    model: Annotated[str, typer.Argument(help="shipped name, exported folder or run")],
    prompts: Annotated[str, typer.Option(help="folder or manifest of clips to continue")],
    out: Annotated[Path, typer.Option(help="folder for the rollouts")],
    seconds: Annotated[float | None, typer.Option(help="length of the continuation")] = None,
    prefix: Annotated[float | None, typer.Option(help="seconds of each clip that are given")] = None,
    steps: Annotated[int | None, typer.Option(help="ODE steps a chunk")] = None,
    actors: int = 2,
    seed: int = 0,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Rollout actors continue clips chunk by chunk; the first of them as a picture: continued.png.

    What is not given is as the model's own config has it."""
    from ray_jobs.cluster import connect
    from ray_jobs.export import load_exported
    from ray_jobs.models import find_model
    from ray_jobs.progress import ProgressDisplay
    from ray_jobs.report_picture import write_picture
    from ray_jobs.rollout import prompts_from, rollout_settings, run_rollouts

    folder = find_model(model)
    cfg = load_exported(folder).cfg
    given = {"prefix_s": prefix, "seconds": seconds, "steps": steps, "actors": actors}
    settings = rollout_settings(cfg, {key: value for key, value in given.items() if value is not None})
    connect(address)
    plan = prompts_from(prompts, cfg, settings)
    with ProgressDisplay() as display:
        rows = run_rollouts(
            folder,
            plan,
            list(range(plan.num_samples)),
            out=out.resolve(),
            rollout=settings,
            seed=seed,
            progress=lambda done, total: display("rollout", {"done": done, "total": total}),
        )
    picture = write_picture(out, out / "continued.png")
    said = f"{len(rows)} rollouts: {picture or out}"
    answer({"out": str(out), "picture": str(picture or ""), "rollouts": rows}, as_json, said)


@app.command()
def check(
    rollouts: Annotated[Path, typer.Argument(help="folder with rollouts.json")],
    truth: Annotated[str | None, typer.Option(help="truth.parquet of `worldmodel render`")] = None,
    out: Annotated[Path, typer.Option(help="where to write")] = Path("checks.json"),
    as_json: Json = False,
) -> None:
    """World-simulation checks with floors, baselines and intervals."""
    from ray_jobs.check import check_rollouts

    checks = check_rollouts(rollouts, truth=truth, out=out)
    lines = [
        f"{name}: skipped: {found['skipped']}"
        if "skipped" in found
        else f"{name}: {short(found['value'])} {found['unit']} (floor {short(found['floor'])})"
        for name, found in checks["checks"].items()
    ]
    answer(checks, as_json, "\n".join(lines))


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="run folder, or its name in runs/")],
    out: Annotated[Path, typer.Option(help="folder to write")],
    best: Annotated[bool, typer.Option("--best", help="of the commit that train.keep_best kept")] = False,
    as_json: Json = False,
) -> None:
    """Checkpoint -> Hugging Face folder."""
    from ray_jobs.export import export_run

    export_run(run, out, best=best)
    answer({"model": str(out)}, as_json, str(out))


app.command()(label)
app.command()(generate)
app.command()(serve)
app.command("check-prompts")(check_prompts)
app.command("env")(env)
app.command()(collect)
app.command("export-lerobot")(export_lerobot)
app.command(context_settings=PASS_ON)(submit)
app.command()(kuberay)
app.command()(forget)
app.command()(doctor)


@app.command()
def bench(
    name: Annotated[str, typer.Argument(help="benchmark, see benchmarks/")],
    smoke: Annotated[
        bool, typer.Option("--smoke", help="the same path in under a minute beyond Ray's start")
    ] = False,
    minutes: Annotated[
        float | None, typer.Option(help="stop in time and file what there is (objectives)")
    ] = None,
    manifest: Annotated[
        str | None, typer.Option(help="clips of your own instead of an embedded world (objectives)")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure one claim and file the result under benchmarks/results/."""
    from ray_jobs.bench import run_benchmark

    result = run_benchmark(name, smoke=smoke, minutes=minutes, manifest=manifest)
    answer(result, as_json, "\n".join(f"{key}: {short(value)}" for key, value in result["figures"].items()))


@app.callback()
def _begin(context: typer.Context) -> None:
    if not set(context.help_option_names) & set(sys.argv):
        keep_standard_output()


def main() -> None:
    """Exit 2 for what the user gave, 1 for what broke, 130 after Ctrl-C or SIGTERM; no tracebacks for any."""
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    sigterm_as_ctrl_c()
    try:
        app()
    except ConfigError as error:
        _complain(error.problems)
        sys.exit(2)
    except UserError as error:
        _complain(error.lines)
        sys.exit(error.exit_code)
    except OSError as error:
        if not (problem := storage_problem(error)):
            raise
        _complain([f"{error.filename or 'writing'}: {problem}"])
        sys.exit(1)


def _complain(lines: list[str]) -> None:
    for line in lines:
        typer.echo(line, err=True)


def _command() -> str:
    return shlex.join(["worldmodel", *sys.argv[1:]])


def _exit_if_stopped(status: str) -> None:
    """130, as of any program that Ctrl-C ends, for SIGTERM too: no script takes a half-trained model for a
    whole one."""
    if status == "stopped":
        typer.echo(f"stopped and committed; resume with the same command: {_command()}", err=True)
        raise typer.Exit(INTERRUPTED)


if __name__ == "__main__":
    main()
