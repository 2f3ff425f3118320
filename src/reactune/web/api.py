"""The HTTP API: every path, and the one call of the service behind it."""

from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any

import sqlalchemy as sa
from anyio import to_thread
from fastapi import FastAPI, Header, Path, Query
from fastapi.exceptions import RequestValidationError
from fastapi.telemetry import TelemetryConfig
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response

import reactune
from reactune.canary.rollout import roll_back
from reactune.canary.routing import BUCKETS, bucket, bucket_ranges, propensity, route, unit_key
from reactune.config.settings import Config
from reactune.erasure.requests import request_erasure
from reactune.errors import DataError, ReactuneError
from reactune.privacy.consent import allow_training, refuse_training
from reactune.privacy.hashing import user_key
from reactune.privacy.user_ids import MAX_ID_CHARS, id_in_header, id_in_url, id_of_somebody
from reactune.records import Reason, Rollout
from reactune.service.state import Service, background_work, check_ready, read_live
from reactune.service.tips import (
    TipRequest,
    create_tip,
    live_models,
    record_reaction,
    record_shown,
)
from reactune.web.access import (
    Access,
    BeaconBodies,
    BodyLimit,
    HeadRequests,
    KeyRegistry,
    TipSlots,
    refuse_error,
    refuse_http,
    refuse_invalid,
)
from reactune.web.direct import Direct, HotPath
from reactune.web.openai_chat import (
    CHAT_KIND,
    KIND_HEADER,
    UNRECORDED,
    USER_HEADER,
    ChatBody,
    chat_answer,
    model_answer,
    models_answer,
    tip_request,
)
from reactune.web.pages import Pages, add_pages
from reactune.web.schemas import (
    ErasureAnswer,
    ReactionBody,
    RouteAnswer,
    TipAnswer,
    TipBody,
    TrainingBody,
)
from reactune.web.telemetry import Metrics, Telemetry

UserPath = Annotated[str, Path(min_length=1, max_length=MAX_ID_CHARS)]
MAX_HEADER_CHARS = 12 * MAX_ID_CHARS + 20  # of a character's UTF-8, each byte as %XX

# FastAPI's own spans and logs hold paths and bodies with ids and texts; ours do not.
NO_TELEMETRY: TelemetryConfig = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
}


def create_app(service: Service, config: Config | None = None) -> FastAPI:
    """The API over an open service, which the caller closes, and the pages for people.

    Without `config` the pages show the service's own settings among the defaults. While the app
    runs, it watches the rollout, so that no request waits for a change.
    """
    keys, metrics = KeyRegistry(service.engine, service.settings), Metrics(service)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with keys.kept_fresh(), background_work(service):
            yield
        await service.runtime.end_writing()

    app = FastAPI(
        title="reactune",
        version=reactune.__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        telemetry=NO_TELEMETRY,
    )
    # The last one added sees a request first.
    app.add_middleware(Direct, paths=_add_tips(app, service))
    app.add_middleware(BeaconBodies)
    app.add_middleware(BodyLimit)
    app.add_middleware(Access, keys=keys)
    app.add_middleware(Telemetry, metrics=metrics)
    app.add_middleware(HeadRequests)
    if service.settings.cors_origins:
        # Before the keys: a browser asks for permission without one.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=service.settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", USER_HEADER, KIND_HEADER],
            expose_headers=["retry-after", *UNRECORDED],
        )
    app.add_exception_handler(ReactuneError, refuse_error)
    app.add_exception_handler(sa.exc.SQLAlchemyError, refuse_error)
    app.add_exception_handler(RequestValidationError, refuse_invalid)
    app.add_exception_handler(HTTPException, refuse_http)
    _add_users(app, service)
    _add_rollouts(app, service)
    _add_status(app, service, metrics)
    config = config or Config(serve=service.settings, labels=service.labels)
    add_pages(app, Pages(service, config, keys))
    return app


def _add_tips(app: FastAPI, service: Service) -> dict[str, HotPath]:
    """Declare the routes of tips; those with a short way."""
    slots = TipSlots(service.settings.max_tips_waiting)

    @app.post("/v1/tips", response_model=TipAnswer)
    async def tips(body: TipBody) -> Response:
        """Write a tip for a user; it is on disk when the answer arrives, or `recorded` is false."""
        request = TipRequest(
            body.user, body.kind, body.context, tuple(body.names), body.tip_id or ""
        )
        async with slots:
            tip = await create_tip(service, request)
        answer = TipAnswer(tip_id=tip.tip_id, content=tip.content, recorded=tip.recorded)
        return Response(answer.model_dump_json(), media_type="application/json")

    @app.post("/v1/chat/completions")
    async def chat(
        body: ChatBody,
        user: str = Header("", alias=USER_HEADER, max_length=MAX_HEADER_CHARS),
        kind: str = Header(CHAT_KIND, alias=KIND_HEADER),
    ) -> Response:
        """A tip for a conversation, in OpenAI's form; the answer's id is the tip's."""
        async with slots:
            tip = await create_tip(
                service, tip_request(body, user=id_in_header(user), kind=id_in_header(kind))
            )
        return chat_answer(body, tip)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The one model that OpenAI's clients see."""
        return models_answer()

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> dict[str, Any]:
        """That model by its name."""
        return model_answer(model)

    @app.post("/v1/tips/{tip_id}/shown", status_code=204)
    async def shown(tip_id: str) -> None:
        """The user sees the tip now; calling again changes nothing."""
        await record_shown(service, tip_id)

    @app.post("/v1/reactions", status_code=204)
    async def reactions(body: ReactionBody) -> Response:
        """Record the user's reaction; a later one replaces an earlier one.

        202 where the tip is not known yet: the reaction is kept for it.
        """
        status = await record_reaction(service, body.tip_id, body.reaction, body.dwell_ms)
        return JSONResponse(None, 202) if status == "kept" else Response(status_code=204)

    def chat_directly(body: ChatBody, headers: Headers) -> Awaitable[Response] | None:
        user = headers.get(USER_HEADER, "")
        if len(user) > MAX_HEADER_CHARS:
            return None
        return chat(body, user, headers.get(KIND_HEADER, CHAT_KIND))

    hot = (
        HotPath("/v1/tips", TipBody, lambda body, headers: tips(body)),
        HotPath("/v1/chat/completions", ChatBody, chat_directly),
        HotPath("/v1/reactions", ReactionBody, lambda body, headers: reactions(body)),
    )
    return {each.path: each for each in hot}


def _add_users(app: FastAPI, service: Service) -> None:
    engine, hashing_keys = service.engine, service.hashing_keys

    @app.delete("/v1/users/{user:path}", status_code=202)
    def erase(user: UserPath) -> ErasureAnswer:
        """Erase a user: now in the database, elsewhere with the next `run` or `erase`."""
        erasure = request_erasure(
            engine,
            hashing_keys,
            [id_in_url(user)],
            actor="service",
            reason="asked of the service",
            now=service.clock(),
        )
        return ErasureAnswer(erasure=erasure.erasure_id)

    @app.put("/v1/users/{user:path}/training", status_code=204)
    def training(user: UserPath, body: TrainingBody) -> None:
        """Decide whether later models may learn from this user."""
        decide = allow_training if body.allowed else refuse_training
        decide(engine, hashing_keys, id_of_somebody(id_in_url(user)), now=service.clock())


def _add_rollouts(app: FastAPI, service: Service) -> None:
    @app.get("/v1/route")
    async def arm_of(
        user: Annotated[str, Query(min_length=1, max_length=MAX_ID_CHARS)], tip_id: str = ""
    ) -> RouteAnswer:
        """The arm that answers a user now; nothing is recorded."""
        live = await live_models(service)
        if live.rollout.unit == "tip" and not tip_id:
            raise DataError("each tip is routed by itself ([canary] unit); give a tip_id")
        hashed = user_key(service.hashing_keys.current, id_of_somebody(id_in_url(user)))
        unit = unit_key(live.rollout.unit, tip_id=tip_id, user_key=hashed, at=service.clock())
        arm = route(unit, salt=live.rollout.salt, share=live.share)
        model = live.challenger if arm == "challenger" else live.champion
        assert model is not None
        return RouteAnswer(
            arm=arm,
            model_version=model.version,
            rollout_id=live.rollout_id,
            unit=live.rollout.unit,
            unit_key=unit,
            propensity=propensity(arm, live.share),
            bucket=bucket(unit, salt=live.rollout.salt) / BUCKETS,
            ranges=bucket_ranges((live.share, 1 - live.share)),
        )

    @app.get("/v1/rollouts/current")
    async def current() -> Rollout:
        """The open rollout, for routers in the app's own process."""
        rollout, _ = await to_thread.run_sync(partial(read_live, service.engine))
        return rollout

    @app.post("/v1/rollouts/current/stop")
    async def stop() -> Rollout:
        """Withdraw the challenger: here at once, in every worker in under a second."""
        return await to_thread.run_sync(_stop, service)


def _stop(service: Service) -> Rollout:
    rollout, _ = read_live(service.engine)
    if rollout.challenger is not None:
        reason = Reason("hand", "stopped over HTTP", {}, service.clock())
        rollout = roll_back(service.engine, rollout, reason)
    service.watcher.drop_withdrawn()
    return rollout


def _add_status(app: FastAPI, service: Service, metrics: Metrics) -> None:
    @app.get("/metrics")
    async def prometheus() -> Response:
        """The service's metrics, for Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process is alive."""
        return {"status": "alive"}

    @app.get("/readyz")
    def readyz() -> dict[str, str]:
        """Database and model server answer, and a champion is live."""
        check_ready(service)
        return {"status": "ready"}
