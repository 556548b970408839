"""The API in the style of OpenAI's videos, and the page: one ASGI app over a table of jobs. Knows no Ray."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response

from ray_jobs.serve_body import read_body
from ray_jobs.serve_facts import ModelFacts
from ray_jobs.serve_jobs import Job, Jobs
from ray_jobs.serve_problems import Problem, answer_problems
from ray_jobs.serve_request import Asked, read_request

STUDIO = Path(__file__).parent / "studio"
PAGE = {"/": "index.html", "/page.js": "page.js", "/page.css": "page.css"}
# The page loads nothing from elsewhere, and nothing may frame it.
PAGE_HEADERS = {
    "Content-Security-Policy": "; ".join(
        (
            *("default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self' blob:"),
            *("media-src blob:", "img-src 'self' blob: data:", "form-action 'none'", "base-uri 'none'"),
            "frame-ancestors 'none'",
        )
    ),
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
MAX_LISTED = 100
PATIENCE = "wait"  # of `Prefer`, RFC 7240


def build_app(jobs: Jobs, model: ModelFacts, *, token: str) -> FastAPI:
    """token: what every address under /v1 asks for."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    answer_problems(app)
    app.include_router(_api(jobs, model, token))

    @app.get("/healthz")
    async def healthz() -> Response:
        return JSONResponse({"status": "ok", "model": model.name})

    for address, name in PAGE.items():
        app.add_api_route(address, _page(name), methods=["GET"], response_model=None)
    return app


def _page(name: str) -> Any:
    async def page() -> Response:
        return FileResponse(STUDIO / name, headers=PAGE_HEADERS)

    return page


def _api(jobs: Jobs, model: ModelFacts, token: str) -> APIRouter:
    abilities = model.abilities()

    async def check_token(request: Request) -> None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not secrets.compare_digest(given.strip().encode(), token.encode()):
            words = "that is not the token of this server" if given else "no token is given"
            raise Problem(
                401,
                "token",
                f"{words}; send Authorization: Bearer TOKEN with the token that `worldmodel serve` printed",
                headers={"WWW-Authenticate": "Bearer"},
            )

    api = APIRouter(prefix="/v1", dependencies=[Depends(check_token)])

    @api.get("/models", response_model=None)
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [abilities]})

    @api.post("/videos", response_model=None)
    async def create(request: Request) -> Response:
        asked = await read_request(await read_body(request), model)
        job = jobs.add(asked, _about(asked, model))
        if not (asked.wait or _prefers_to_wait(request)):
            return JSONResponse(job.answer(), 202, headers={"Location": f"/v1/videos/{job.id}"})
        await job.ended.wait()
        if job.error is not None:
            raise _problem_of(job)
        return JSONResponse(job.answer())

    @api.get("/videos", response_model=None)
    async def listed(request: Request) -> Response:
        given = request.query_params.get("limit", "20")
        if not given.isdecimal() or not 1 <= int(given) <= MAX_LISTED:
            raise Problem(422, "value", f"limit={given:.40}: use 1 to {MAX_LISTED}")
        return JSONResponse({"object": "list", "data": [job.answer() for job in jobs.newest(int(given))]})

    @api.get("/videos/{name}", response_model=None)
    async def one(name: str) -> Response:
        return JSONResponse(jobs.get(name).answer())

    @api.get("/videos/{name}/content", response_model=None)
    async def content(name: str) -> Response:
        job = jobs.get(name)
        if job.error is not None:
            raise _problem_of(job)
        if job.status != "completed":
            raise Problem(409, "not-ready", f"{name} is {job.status}, {job.progress} % made; ask again later")
        return FileResponse(jobs.file(job), media_type="video/mp4", filename=f"{job.id}.mp4")

    @api.delete("/videos/{name}", response_model=None)
    async def delete(name: str) -> Response:
        await jobs.delete(name)
        return JSONResponse({"id": name, "object": "video.deleted", "deleted": True})

    return api


def _about(asked: Asked, model: ModelFacts) -> dict[str, Any]:
    """seconds is what is asked for until the clip is made: a given clip may make it longer."""
    frames = model.trained_frames if asked.num_frames is None else asked.num_frames
    return {
        "model": model.name,
        "prompt": asked.prompt,
        "caption": asked.read.caption,
        "speech": asked.read.speech,
        "seed": asked.seed,
        "num_frames": frames,
        "seconds": frames / model.cfg.data.fps,
        "size": model.size,
        "inputs": sorted(asked.media),
    }


def _prefers_to_wait(request: Request) -> bool:
    preferred = request.headers.get("prefer", "").split(",")
    return any(words.strip().lower().partition("=")[0] == PATIENCE for words in preferred)


def _problem_of(job: Job) -> Problem:
    assert job.error is not None, "asked of a clip that failed"
    if job.error["code"] == "refused":
        return Problem(422, "value", job.error["message"])
    if job.error["code"] == "deleted":
        return Problem(404, "not-found", job.error["message"])
    return Problem(500, "server", job.error["message"])
