"""The HTTP API: a path and a typed body in, one call of the service, a small answer out.

What the calls do is left to `serving.py`.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated

import sqlalchemy as sa
from anyio import to_thread
from fastapi import FastAPI, Header, Path
from fastapi.exceptions import RequestValidationError
from fastapi.telemetry import TelemetryConfig
from starlette.exceptions import HTTPException
from starlette.responses import Response

import reactune
from reactune.canary import rollout as rollouts
from reactune.canary.routing import BUCKETS, bucket, bucket_ranges, propensity, route, unit_key
from reactune.erasure.requests import request_erasure
from reactune.errors import DataError, ReactuneError
from reactune.privacy.consent import allow_training, refuse_training
from reactune.privacy.hashing import user_key
from reactune.records import Reason, Rollout
from reactune.service.rollout_watcher import read_live
from reactune.service.state import Service, tending
from reactune.service.tips import (
    Asked,
    check_ready,
    give_tip,
    lineup_now,
    note_reaction,
    note_shown,
)
from reactune.web.auth import (
    Access,
    BodyLimit,
    KeyRing,
    Places,
    answer_error,
    answer_http,
    answer_invalid,
)
from reactune.web.schemas import (
    KIND_HEADER,
    USER_HEADER,
    ChatRequest,
    ErasureAnswer,
    ReactionRequest,
    RouteAnswer,
    TipAnswer,
    TipRequest,
    TrainingRequest,
    chat_answer,
)
from reactune.web.telemetry import Metrics, Watch

UserId = Annotated[str, Path(min_length=1, max_length=512)]


def add_routes(app: FastAPI, service: Service) -> None:
    """Add the paths below `/v1/users`."""
    engine, hashing_keys = service.engine, service.hashing_keys

    @app.delete("/v1/users/{user:path}", status_code=202)
    def erase(user: UserId) -> ErasureAnswer:
        """Forget a user: at once in the database, elsewhere with the next `run` or `erase`."""
        asked = request_erasure(
            engine,
            hashing_keys,
            [user],
            actor="service",
            reason="asked of the service",
            now=service.clock(),
        )
        return ErasureAnswer(erasure=asked.erasure_id)

    @app.put("/v1/users/{user:path}/training", status_code=204)
    def training(user: UserId, body: TrainingRequest) -> None:
        """Say whether later models may learn from this user."""
        decide = allow_training if body.allowed else refuse_training
        decide(engine, hashing_keys, user, now=service.clock())


# FastAPI's own spans and logs hold paths and bodies with ids and texts in them:
# spans without are `watch.py`'s.
NO_TELEMETRY: TelemetryConfig = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
}


def create_app(service: Service) -> FastAPI:
    """The API over an open service; closing the service is left to whoever opened it.

    While the app runs, it watches for changes of the rollout, so that no request waits for one.
    """

    ring, metrics = KeyRing(service.engine, service.settings), Metrics(service)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with ring.kept_fresh(), tending(service):
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
    app.add_middleware(BodyLimit)
    app.add_middleware(Access, ring=ring)
    app.add_middleware(Watch, metrics=metrics)
    app.add_exception_handler(ReactuneError, answer_error)
    app.add_exception_handler(sa.exc.SQLAlchemyError, answer_error)
    app.add_exception_handler(RequestValidationError, answer_invalid)
    app.add_exception_handler(HTTPException, answer_http)
    _add_people(app, service)
    add_routes(app, service)
    _add_rollouts(app, service)
    _add_signs(app, service, metrics)
    return app


def _add_people(app: FastAPI, service: Service) -> None:
    places = Places(service.settings.max_tips_waiting)

    @app.post("/v1/tips")
    async def tips(body: TipRequest) -> TipAnswer:
        """Write a tip for a user; it is on disk when the answer arrives, or `recorded` is false."""
        asked = Asked(body.user, body.kind, body.parts, tuple(body.names), body.tip_id or "")
        async with places:
            tip = await give_tip(service, asked)
        return TipAnswer(tip_id=tip.tip_id, content=tip.content, recorded=tip.recorded)

    @app.post("/v1/tips/{tip_id}/shown", status_code=204)
    async def shown(tip_id: str) -> None:
        """The user sees the tip now; calling again changes nothing."""
        await note_shown(service, tip_id)

    @app.post("/v1/reactions", status_code=204)
    async def reactions(body: ReactionRequest, response: Response) -> None:
        """Record what the user did; a later reaction rewrites the former.

        202 where the tip is not known yet: the reaction is kept for it.
        """
        written = await note_reaction(service, body.tip_id, body.reaction, body.dwell_ms)
        if written == "kept":
            response.status_code = 202

    @app.post("/v1/chat/completions")
    async def chat(
        body: ChatRequest,
        user: str = Header("", alias=USER_HEADER, max_length=512),
        kind: str = Header("chat", alias=KIND_HEADER),
    ) -> Response:
        """A tip for a conversation, in OpenAI's form; the answer's id is the tip's."""
        async with places:
            tip = await give_tip(service, body.asked(user, kind))
        return chat_answer(body, tip)


def _add_rollouts(app: FastAPI, service: Service) -> None:
    @app.get("/v1/route")
    async def arm_of(user: str, tip_id: str = "") -> RouteAnswer:
        """Which arm answers a user now; nothing is recorded."""
        if not 0 < len(user) <= 512:
            raise DataError("user: the app's id of the user, 1 to 512 characters")
        live = await lineup_now(service)
        rollout, person = live.rollout, user_key(service.hashing_keys.current, user)
        if rollout.unit == "tip" and not tip_id:
            raise DataError("tips are routed one by one ([canary] unit); give a tip_id")
        unit = unit_key(rollout.unit, tip_id=tip_id, user_key=person, at=service.clock())
        arm = route(unit, salt=rollout.salt, share=live.share)
        model = live.challenger if arm == "challenger" else live.champion
        assert model is not None
        return RouteAnswer(
            arm=arm,
            model_version=model.version,
            rollout_id=live.rollout_id,
            unit=rollout.unit,
            unit_key=unit,
            propensity=propensity(arm, live.share),
            bucket=bucket(unit, salt=rollout.salt) / BUCKETS,
            ranges=bucket_ranges((live.share, 1 - live.share)),
        )

    @app.get("/v1/rollouts/current")
    async def current() -> Rollout:
        """What is live, for routers in the app's own process."""
        rollout, _ = await to_thread.run_sync(partial(read_live, service.engine))
        return rollout

    @app.post("/v1/rollouts/current/stop")
    async def stop() -> Rollout:
        """Withdraw the challenger now, here at once and in every worker in under a second."""
        return await to_thread.run_sync(_stop, service)


def _stop(service: Service) -> Rollout:
    rollout, _ = read_live(service.engine)
    if rollout.challenger is not None:
        why = Reason("hand", "stopped over HTTP", {}, service.clock())
        rollout = rollouts.roll_back(service.engine, rollout, why)
    service.live.withdraw()
    return rollout


def _add_signs(app: FastAPI, service: Service, metrics: Metrics) -> None:
    @app.get("/metrics")
    async def figures() -> Response:
        """The service's figures, for Prometheus."""
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
