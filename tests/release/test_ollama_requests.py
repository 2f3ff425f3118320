"""How a model server is asked from an event loop."""

import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from reactune.release.ollama import AsyncConnections


@pytest.fixture
def server():
    """A server that tells the line it was asked by and the headers; its address."""

    class Echo(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            told = {"line": self.path, "headers": [name.lower() for name in self.headers]}
            body = json.dumps(told).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()


def ask(url):
    async def both():
        connections = AsyncConnections(url, timeout_seconds=5)
        try:
            return await connections.post("/api/x", {})
        finally:
            await connections.close()

    status, body = asyncio.run(both())
    assert status == 200
    return json.loads(body)


def test_the_proxy_of_the_environment_is_used_unless_the_host_is_excepted(server, monkeypatch):
    monkeypatch.setenv("http_proxy", server)
    monkeypatch.setenv("no_proxy", "")
    assert ask("http://models.invalid:11434")["line"] == "http://models.invalid:11434/api/x"
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert ask(server)["line"] == "/api/x"


def test_no_password_is_sent_that_only_a_netrc_file_knows(server, monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert "authorization" not in ask(server)["headers"]
