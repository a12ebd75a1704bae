"""The routes. FastAPI is imported when an app is made, so that the rest of Luthier does without it."""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from luthier.engines.ask import Asker
from luthier.errors import LuthierError, MissingExtra
from luthier.serve.auth import Keys
from luthier.serve.guard import Guard, error_body
from luthier.serve.schemas import ChatRequest, ClassifyRequest
from luthier.serve.service import Service, as_events

if TYPE_CHECKING:
    from fastapi import FastAPI

_LOG = logging.getLogger("luthier.serve")

MAX_BODY_BYTES = 1_048_576


def require(package: str) -> Any:
    """Import a package of the extra 'serve'.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:  # it is there, but something that it needs is not
            raise
        raise MissingExtra(package, extra="serve", purpose="the server") from error


def create_app(
    askers: Mapping[str, Asker],
    *,
    model_id: str,
    also_called: frozenset[str] = frozenset(),
    api_keys: frozenset[str] = frozenset(),
    max_body_bytes: int = MAX_BODY_BYTES,
    clock: Callable[[], float] = time.time,
) -> FastAPI:
    """The server for one version, as an ASGI app.

    Args:
        askers: the tasks of the version by name; one or several.
        model_id: the name under which it is listed.
        also_called: further names that clients may ask for, such as the name without a version.
        api_keys: that open it; with none it answers under loopback names only, and `run` refuses any other host.
        max_body_bytes: largest request body.
        clock: seconds since 1970, for the field `created`.

    Raises:
        MissingExtra: FastAPI is not installed.
    """
    fastapi = require("fastapi")
    service = Service(askers, model_id=model_id, also_called=also_called, clock=clock)
    # No /docs: its page would fetch scripts from the net.
    app: FastAPI = fastapi.FastAPI(title="Luthier", docs_url=None, redoc_url=None)
    keys = Keys(api_keys)
    app.state.has_keys = bool(keys)
    app.add_middleware(Guard, keys=keys, max_body_bytes=max_body_bytes)
    _add_routes(app, service)
    _add_error_handlers(app)
    return app


def _add_routes(app: FastAPI, service: Service) -> None:
    from fastapi.responses import Response

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return service.health()

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return service.models()

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        return service.model(name)

    # The two below ask the model and run in worker threads, so that /health answers meanwhile.

    @app.post("/v1/chat/completions", response_model=None)
    def chat(request: ChatRequest) -> Any:
        completion = service.complete(request)
        if not request.stream:
            return completion
        include_usage = request.stream_options is not None and request.stream_options.include_usage
        events = as_events(completion, include_usage=include_usage)
        return Response(events, media_type="text/event-stream", headers={"cache-control": "no-store"})

    @app.post("/v1/classify")
    def classify(request: ClassifyRequest) -> dict[str, Any]:
        return service.classify(request)


def _add_error_handlers(app: FastAPI) -> None:
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException

    def ours(_: Any, error: Exception) -> JSONResponse:
        assert isinstance(error, LuthierError)
        if error.http_status >= 500:
            _LOG.error("%s", error, exc_info=error)
        return JSONResponse(error_body(error), status_code=error.http_status)

    def invalid(_: Any, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        place, message = _first_fault(error.errors())
        message = f"{place}: {message}" if place else message
        return JSONResponse(_plain_body(400, message, param=place or None), status_code=400)

    def http(_: Any, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        body = _plain_body(error.status_code, error.detail)
        return JSONResponse(body, status_code=error.status_code, headers=error.headers)

    def unexpected(_: Any, error: Exception) -> JSONResponse:
        # Starlette raises the error again after this answer, so that it reaches the log with its traceback.
        return JSONResponse(_plain_body(500, "the server failed; the cause is in its log"), status_code=500)

    app.add_exception_handler(LuthierError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, unexpected)


def _plain_body(status: int, message: str, *, param: str | None = None) -> dict[str, Any]:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": None}}


def _first_fault(faults: Any) -> tuple[str, str]:
    """(place, message) of the first fault of a body; the value itself is not repeated, it may be private."""
    fault = faults[0]
    if fault["type"] == "json_invalid":
        return "", f"the body is not JSON: {fault['ctx']['error']} at character {fault['loc'][-1]}"
    place = ".".join(str(part) for part in fault["loc"] if part != "body")
    if fault["type"] == "extra_forbidden":
        return place, "this field is not known here; leave it out"
    return place, str(fault["msg"]).removeprefix("Value error, ")
