"""TensorZero's embedded gateway at some rate: seconds from due to done, as a JSON list.

Run by `bench/service.py --tensorzero` in an environment that has `tensorzero`. It is a library in
the caller's process, with observability off, because that needs ClickHouse: it writes nothing down.
"""

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path

from tensorzero import AsyncTensorZeroGateway

from arrivals import WARM_UP, send

SETTINGS = """
[gateway]
observability.enabled = false

[models.stub]
routing = ["stub"]

[models.stub.providers.stub]
type = "openai"
api_base = "{address}/v1/"
model_name = "stub"
api_key_location = "none"

[functions.tip]
type = "chat"

[functions.tip.variants.champion]
type = "chat_completion"
model = "stub"
"""
QUESTION = "What shall I do about my essay this morning?"


async def measure(address: str, *, rate: float, seconds: float, seed: int) -> list[float]:
    """Ask at random times, so many a second, whether or not those before are answered."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "tensorzero.toml"
        settings.write_text(SETTINGS.format(address=address))
        gateway = await AsyncTensorZeroGateway.build_embedded(config_file=str(settings))
    waited: list[float] = []
    messages = {"messages": [{"role": "user", "content": QUESTION}]}

    async def one(number: int, due: float) -> None:
        await gateway.inference(function_name="tip", input=messages)
        waited.append(time.perf_counter() - due)

    for number in range(WARM_UP):
        await one(number, time.perf_counter())
    waited.clear()
    await send(one, rate=rate, seconds=seconds, seed=seed)
    return waited


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    options = parser.parse_args()
    told = asyncio.run(
        measure(options.address, rate=options.rate, seconds=options.seconds, seed=options.seed)
    )
    print(json.dumps(told))
