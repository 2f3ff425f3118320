"""What people may ask of the service about themselves: to be forgotten, and not to be learned from.

What follows is `journal.py`'s and `people.py`'s.
"""

from typing import Annotated

from fastapi import FastAPI, Path

from reactune.journal import ask_for_people
from reactune.people import allow_training, refuse_training
from reactune.serving import Service
from reactune.web.bodies import ErasureAnswer, TrainingRequest

UserId = Annotated[str, Path(min_length=1, max_length=512)]


def add_routes(app: FastAPI, service: Service) -> None:
    """Add the paths below `/v1/users`."""
    engine, keyring = service.engine, service.keyring

    @app.delete("/v1/users/{user:path}", status_code=202)
    def erase(user: UserId) -> ErasureAnswer:
        """Forget a user: at once in the database, elsewhere with the next `run` or `erase`."""
        asked = ask_for_people(
            engine,
            keyring,
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
        decide(engine, keyring, user, now=service.clock())
