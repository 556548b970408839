"""`worldmodel index` and `worldmodel data`: which clips there are, which are used, what they are like."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ray_jobs.cli_output import Address, Json, answer
from ray_jobs.errors import UserError

DROPS = ("static", "black", "silent", "duplicate")
SHOWN = 20  # reasons on a terminal; the quarantine file has all

data_app = typer.Typer(no_args_is_help=True, help="Describe data.")


def index(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="folders, CSV, JSON, JSONL, Parquet, WebDataset tars, LeRobot; local, s3:// or gs://"
        ),
    ],
    out: Annotated[Path, typer.Option(help="Parquet manifest to write")],
    shots: Annotated[
        bool, typer.Option("--shots", help="a row for each shot (needs the extra filters)")
    ] = False,
    min_shot_s: Annotated[
        float, typer.Option("--min-shot", min=0, help="seconds; shorter shots are left out")
    ] = 0.5,
    drop: Annotated[
        list[str] | None, typer.Option(help="static, black, silent or duplicate clips; may be repeated")
    ] = None,
    max_drift_s: Annotated[
        float | None, typer.Option("--max-drift", help="seconds that sound and picture may part")
    ] = None,
    min_side: Annotated[int, typer.Option(min=0, help="pixels of the shorter side")] = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="open files again that did not change")] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Ray tasks at a time; default: all CPUs of a cluster, else one")
    ] = None,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Probe media, read captions, write a manifest and a quarantine list.

    Files are probed in this process; --address or --workers spreads them as Ray tasks."""
    filters = _filters(
        shots=shots,
        min_shot_s=min_shot_s,
        drop=tuple(dict.fromkeys(drop or ())),
        max_drift_s=max_drift_s,
        min_side=min_side,
    )
    from ray_jobs.index import index_sources
    from ray_jobs.manifest_table import plain_reason
    from ray_jobs.progress import ProgressDisplay

    if address is not None or workers is not None:
        from ray_jobs.cluster import connect

        connect(address)
    with ProgressDisplay() as display:
        result = index_sources(
            sources,
            out=str(out),
            filters=filters,
            fresh=fresh,
            workers=workers,
            progress=lambda done, total: display("index", {"done": done, "total": total}),
            look_progress=lambda done, total: display("look", {"done": done, "total": total}),
        )
    lines = [f"{result.kept} clips: {result.manifest}", *result.warnings]
    lines += [f"quarantined: {row['uri']}: {plain_reason(row)}" for row in result.quarantined[:SHOWN]]
    if len(result.quarantined) > SHOWN:
        lines.append(f"and {len(result.quarantined) - SHOWN} more, see {result.manifest}.quarantine.jsonl")
    if result.reused:
        lines.append(f"{result.reused} files did not change and were not opened")
    found = {
        "manifest": result.manifest,
        "kept": result.kept,
        "reused": result.reused,
        "quarantined": result.quarantined,
        "warnings": result.warnings,
    }
    answer(found, as_json, "\n".join(lines))


@data_app.command("stats")
def data_stats(
    manifest: Annotated[str, typer.Argument(help="what `worldmodel index` wrote")],
    page: Annotated[Path | None, typer.Option(help="write a page with pictures: OUT.html")] = None,
    clips: Annotated[int, typer.Option(min=0, help="clips on the page's contact sheet")] = 24,
    as_json: Json = False,
) -> None:
    """Hours, sizes, rates, loudness, drift, labels, cost of decoding, and what was left out and why."""
    if page is not None and page.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--page {page}: the page is HTML; use {page.with_suffix('.html')}")
    from ray_jobs.data_stats import as_text, describe

    facts = describe(manifest)
    if page is None:
        return answer(facts, as_json, as_text(facts))
    from ray_jobs.data_page import write_data_page
    from ray_jobs.progress import ProgressDisplay

    with ProgressDisplay() as display:
        written = write_data_page(
            manifest,
            page,
            clips=clips,
            progress=lambda done, total: display("page", {"done": done, "total": total}),
        )
    answer(facts | {"page": str(written)}, as_json, f"{as_text(facts)}\npage: {written}")


@data_app.command("table")
def data_table(
    manifest: Annotated[str, typer.Argument(help="what `worldmodel index` wrote")], as_json: Json = False
) -> None:
    """A Markdown table: each file, with what is known of it or why it was left out."""
    from ray_jobs.data_table import as_table

    table = as_table(manifest)
    answer({"table": table}, as_json, table)


def _filters(**given: Any) -> Any:
    from pydantic import ValidationError

    from worldmodel.config import FilterConfig

    try:
        return FilterConfig.model_validate(given)
    except ValidationError as error:
        where = error.errors()[0]["loc"][0]
        if where == "drop":
            bad = ", ".join(str(name) for name in given["drop"] if name not in DROPS)
            raise UserError(f"--drop {bad}: there is {', '.join(DROPS)}") from None
        option = {"max_drift_s": "--max-drift", "min_shot_s": "--min-shot"}.get(str(where), f"--{where}")
        raise UserError(f"{option} {given[str(where)]}: {error.errors()[0]['msg'].lower()}") from None
