"""The routes of the label page. Knows HTTP and sessions; who may come in is in `gate`, what is asked in `session`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from sp_rerank.errors import StorageError, UsageError
from sp_rerank.label.gate import Gate, Keys
from sp_rerank.label.session import Session

STATIC = {
    "/": ("sp_rerank.label", "static/label.html", "text/html"),
    "/label.js": ("sp_rerank.label", "static/label.js", "text/javascript"),
    "/label.css": ("sp_rerank.label", "static/label.css", "text/css"),
    "/icon.svg": ("sp_rerank.label", "static/icon.svg", "image/svg+xml"),
    "/page.css": ("sp_rerank.report", "templates/page.css", "text/css"),
}
"""Files of the page by path: package, name, type. No path of a request is ever one of the disk."""

LONGEST = 24 * 3600 * 1000  # milliseconds of an answer


def build_app(sessions: Mapping[str, Session], keys: Keys, host: str, port: int) -> Gate:
    """The application for a server at a host and port.

    Args:
        sessions: By the names that `keys` has.
        keys: Of these people.
        host: That the server listens on.
        port: As well.
    """

    def session(request: Request) -> Session:
        return sessions[request.state.person]

    async def state(request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(session(request).state))

    async def answer(request: Request) -> Response:
        body = await _body(request)
        question, said, spent = body.get("id"), body.get("said"), body.get("milliseconds")
        if not (isinstance(question, str) and isinstance(said, str) and type(spent) is int and 0 <= spent <= LONGEST):
            raise UsageError("expected the id of a question, what was said, and whole milliseconds")
        kept = await run_in_threadpool(session(request).answer, question, said, spent)
        found = await run_in_threadpool(session(request).state)
        return JSONResponse(found, 200 if kept else 409)

    async def undo(request: Request) -> Response:
        await run_in_threadpool(session(request).undo)
        return JSONResponse(await run_in_threadpool(session(request).state))

    async def best(request: Request) -> Response:
        return JSONResponse(await run_in_threadpool(session(request).best_names))

    async def image(request: Request) -> Response:
        png = await run_in_threadpool(session(request).png, request.path_params["name"])
        if png is None:
            return PlainTextResponse("No such image.", 404)
        return Response(png, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})

    routes = [
        *(Route(path, _file(*place)) for path, place in STATIC.items()),
        Route("/state", state),
        Route("/best", best),
        Route("/image/{name}", image),
        Route("/answer", answer, methods=["POST"]),
        Route("/undo", undo, methods=["POST"]),
    ]
    handlers: dict[Any, Any] = {UsageError: _refused, StorageError: _not_kept}
    return Gate(Starlette(routes=routes, exception_handlers=handlers), keys, host, port)


def _file(package: str, name: str, kind: str) -> Any:
    content = files(package).joinpath(*name.split("/")).read_bytes()

    async def respond(_: Request) -> Response:
        return Response(content, media_type=kind)

    return respond


async def _body(request: Request) -> dict[str, Any]:
    try:
        found = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise UsageError("expected JSON") from error
    if not isinstance(found, dict):
        raise UsageError("expected a JSON object")
    return found


async def _refused(_: Request, error: Exception) -> Response:
    return PlainTextResponse(str(error), 400)


async def _not_kept(_: Request, error: Exception) -> Response:
    """A disk that is full or images that are gone; paths stay here."""
    cause = error.__cause__
    reason = getattr(cause, "strerror", None) or "the store or an image cannot be used; the terminal says more"
    return PlainTextResponse(f"Not kept: {reason}", 507)
