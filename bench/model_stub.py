"""A model server that writes the same tip after a fixed delay: Ollama's API and OpenAI's.

    python bench/model_stub.py --port 18000 --delay-ms 50

With `--garbage` it answers HTML instead of JSON.
"""

import argparse
import asyncio
import json

TIP = "Write the first line of your essay now, then take a short walk."
CHAT = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "stub",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": TIP},
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 50, "completion_tokens": 14, "total_tokens": 64},
}


def answer_of(path: str, body: bytes) -> dict[str, object]:
    """The fixed answer to a request."""
    if path.endswith("/chat/completions"):
        return CHAT
    if path == "/api/tags":
        return {"models": []}
    if path == "/api/create":
        return {"status": "success"}
    model = json.loads(body or b"{}").get("model", "")
    return {
        "model": model,
        "created_at": "2026-01-01T00:00:00Z",
        "response": f"{model}: {TIP}",
        "done": True,
        "done_reason": "stop",
        "prompt_eval_count": 50,
        "eval_count": 14,
    }


async def serve(port: int, delay_seconds: float, garbage: bool) -> None:
    """Answer until the process ends."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                method, path, _ = head.split(" ", 2)
                lengths = [
                    int(line.partition(":")[2])
                    for line in head.split("\r\n")
                    if line.lower().startswith("content-length:")
                ]
                body = await reader.readexactly(lengths[0]) if lengths else b""
                if (path == "/api/generate" and b'"prompt"' in body) or "/chat/" in path:
                    await asyncio.sleep(delay_seconds)
                text = b"<html>" if garbage else json.dumps(answer_of(path, body)).encode()
                content = b"" if method == "HEAD" else text
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
                    b"content-length: %d\r\n\r\n" % len(content) + content
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    listening = await asyncio.start_server(talk, "127.0.0.1", port, backlog=2_048)
    async with listening:
        await listening.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--delay-ms", type=float, default=50.0)
    parser.add_argument("--garbage", action="store_true")
    options = parser.parse_args()
    asyncio.run(serve(options.port, options.delay_ms / 1_000, options.garbage))
