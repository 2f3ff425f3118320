"""The HTTP API: a path and a typed body in, one call of the service, a small answer out.

What the calls do is left to `serving.py`.
"""

import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial

import sqlalchemy as sa
import uvicorn
from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

import reactune
from reactune.config import Config, ServeConfig
from reactune.errors import ReactuneError
from reactune.live_models import read_live, watching
from reactune.privacy import load_key
from reactune.prompt import load_chat
from reactune.records import Runtime
from reactune.run_root import fetch_release, run_root
from reactune.serving import (
    Service,
    check_ready,
    close_service,
    open_service,
    react,
    request_tip,
    tip_shown,
)
from reactune.store import open_store
from reactune.web.bodies import ReactionRequest, TipAnswer, TipRequest
from reactune.web.limits import BodyLimit, answer_error, answer_http, answer_invalid

TIPS_AT_ONCE = 64
LAST_SECONDS = 10  # what requests under way get to finish in when the process is asked to end


def serve(config: Config, connect: Callable[[ServeConfig], Runtime] | None = None) -> None:
    """Listen until SIGTERM or Ctrl-C; the model server ends with it, where it is ours.

    `connect` gives the model server; without it, the one that the settings name.

    Raises:
        PrivacyError: the environment holds no key for user ids.
        DataError: the database does not answer or has no tables, or runs cannot be fetched.
        CanaryError: nothing is live.
        ReleaseError: the model server cannot be reached or started, or files of the champion miss.
    """
    if connect is None:
        from reactune.release import runtimes

        connect = runtimes.connect
    key = load_key(config.privacy, os.environ)
    engine = open_store(config.store_url)
    root = run_root(config)
    rollout, models = read_live(engine, root=root)
    fetch_release(root, models[rollout.champion])
    chat = load_chat(models[rollout.champion].prompt_folder, config.prompt)
    runtime = connect(config.serve)
    service = open_service(
        engine, chat=chat, runtime=runtime, key=key, settings=config.serve, root=root
    )
    try:
        _listen(create_app(service), config.serve)
    finally:
        close_service(service)
        engine.dispose()


def create_app(service: Service) -> FastAPI:
    """The API over an open service; closing the service is left to whoever opened it.

    While the app runs, it watches for changes of the rollout, so that no request waits for one.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with watching(service.live):
            yield

    app = FastAPI(
        title="reactune",
        version=reactune.__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.add_middleware(BodyLimit)
    app.add_exception_handler(ReactuneError, answer_error)
    app.add_exception_handler(sa.exc.SQLAlchemyError, answer_error)
    app.add_exception_handler(RequestValidationError, answer_invalid)
    app.add_exception_handler(HTTPException, answer_http)
    _add_routes(app, service)
    return app


def _add_routes(app: FastAPI, service: Service) -> None:
    # Writing tips takes seconds; threads of their own keep it from holding up reactions.
    limiter = CapacityLimiter(TIPS_AT_ONCE)

    @app.post("/v1/tips")
    async def tips(body: TipRequest) -> TipAnswer:
        """Write a tip for a user; it is recorded when the answer arrives."""
        write = partial(request_tip, service, user_id=body.user, kind=body.kind)
        write = partial(write, context=body.parts, names=body.names)
        tip = await to_thread.run_sync(write, limiter=limiter)
        return TipAnswer(tip_id=tip.tip_id, content=tip.content)

    @app.post("/v1/tips/{tip_id}/shown", status_code=204)
    def shown(tip_id: str) -> None:
        """The user sees the tip now; calling again changes nothing."""
        tip_shown(service, tip_id)

    @app.post("/v1/reactions", status_code=204)
    def reactions(body: ReactionRequest) -> None:
        """Record what the user did; a later reaction rewrites the former."""
        react(service, body.tip_id, body.reaction, body.dwell_ms)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process is alive."""
        return {"status": "alive"}

    @app.get("/readyz")
    def readyz() -> dict[str, str]:
        """Database and model server answer, and a champion is live."""
        check_ready(service)
        return {"status": "ready"}


def _listen(app: FastAPI, settings: ServeConfig) -> None:
    # uvicorn sends itself the signal again when it is done: without this the process would end
    # there and leave the model server behind.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    listening = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        access_log=False,
        timeout_graceful_shutdown=LAST_SECONDS,
    )
    with suppress(KeyboardInterrupt):
        uvicorn.Server(listening).run()
