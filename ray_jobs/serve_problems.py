"""Errors of the API: application/problem+json (RFC 9457), which says what, what was given and what to do."""

from __future__ import annotations

import logging
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from avtok.decode import ClipError
from worldmodel.prompt import PromptError

TITLES = {
    "body": "The request cannot be read",
    "key": "The request has a key that is not known",
    "value": "A value cannot be used",
    "prompt": "The prompt cannot be used",
    "media": "The file cannot be used",
    "size": "The model makes another size",
    "ability": "The model cannot do that",
    "token": "A token is needed",
    "not-found": "It is not here",
    "not-ready": "The clip is not ready",
    "too-large": "The request is too large",
    "busy": "Too many clips wait",
    "server": "The server failed",
}


class Problem(Exception):
    """kind: one of TITLES; it ends up in `type`, which programs look at. detail: for people."""

    def __init__(self, status: int, kind: str, detail: str, *, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.kind, self.detail, self.headers = status, kind, detail, headers


def answer(problem: Problem) -> JSONResponse:
    found = {
        "type": f"urn:worldmodel:{problem.kind}",
        "title": TITLES[problem.kind],
        "status": problem.status,
        "detail": problem.detail,
    }
    return JSONResponse(found, problem.status, headers=problem.headers, media_type="application/problem+json")


def answer_problems(app: FastAPI) -> None:
    """Every error of `app` becomes a problem, also those of the framework and our own mistakes."""

    @app.exception_handler(Problem)
    async def ours(request: Request, error: Problem) -> JSONResponse:
        return answer(error)

    @app.exception_handler(PromptError)
    async def of_prompt(request: Request, error: PromptError) -> JSONResponse:
        return answer(Problem(422, "prompt", str(error)))

    @app.exception_handler(ClipError)
    async def of_media(request: Request, error: ClipError) -> JSONResponse:
        return answer(Problem(422, "media", str(error)))

    @app.exception_handler(HTTPException)
    async def of_routes(request: Request, error: HTTPException) -> JSONResponse:
        kind = "not-found" if error.status_code == 404 else "body"
        words = f"{request.method} {request.url.path}: {error.detail}"
        return answer(Problem(error.status_code, kind, words, headers=dict(error.headers or {})))

    @app.exception_handler(Exception)
    async def of_server(request: Request, error: Exception) -> JSONResponse:
        logging.getLogger("ray.serve").error("%s %s", request.method, request.url.path, exc_info=error)
        return answer(Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "server", "see the log of the server"))
