import os
import pwd
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
import requests

from reactune.environment import (
    ask_own_machine_directly,
    have_a_home,
    limit_spinning,
    server_address,
)


def test_threads_of_a_command_spin_briefly_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    limit_spinning()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    limit_spinning()
    assert os.environ["GOMP_SPINCOUNT"] == "1000"


@pytest.fixture
def unknown_user(monkeypatch):
    """A user id that the system does not know, as in many containers."""
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)


@pytest.mark.usefixtures("unknown_user")
def test_a_user_id_without_a_home_gets_the_one_that_docker_would_give_it(monkeypatch):
    monkeypatch.setenv("HOME", "/kept")
    have_a_home()
    assert Path.home() == Path("/kept")
    monkeypatch.delenv("HOME")
    with pytest.raises(RuntimeError, match="home"):
        Path.home()
    have_a_home()
    assert (os.environ["HOME"], Path.home()) == ("/", Path("/"))


def test_a_user_whom_the_system_knows_keeps_their_home(monkeypatch):
    monkeypatch.delenv("HOME", raising=False)
    have_a_home()
    assert "HOME" not in os.environ
    assert Path("~").expanduser() == Path(pwd.getpwuid(os.getuid()).pw_dir)


@pytest.fixture
def without_proxies(monkeypatch):
    # Set first: what a test or the function adds is undone as well.
    for name in ("no_proxy", "NO_PROXY", "http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY",
                 "all_proxy", "ALL_PROXY"):  # fmt: skip
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


class _Says(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("content-length", str(len(self.path)))
        self.end_headers()
        self.wfile.write(self.path.encode())

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    """The port of a server that answers with the path it was asked for."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Says) as httpd:
        threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
        yield httpd.server_port
        httpd.shutdown()


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "ALL_PROXY"])
@pytest.mark.parametrize("excepted", [None, "", "example.org", "localhost, example.org"])
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(
    without_proxies, monkeypatch, server, name, excepted, host
):
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    if excepted is not None:
        monkeypatch.setenv("NO_PROXY", excepted)
    ask_own_machine_directly()
    url = f"http://{host}:{server}/path"
    found = [httpx.get(url).text, requests.get(url).text]
    with urllib.request.urlopen(url) as answer:
        found.append(answer.read().decode())
    assert found == ["/path"] * 3
    with pytest.raises(requests.exceptions.ProxyError):
        requests.get("http://elsewhere.invalid/")
    once = dict(os.environ)
    ask_own_machine_directly()
    assert os.environ == once
    names = set(os.environ["no_proxy"].split(","))
    assert names == {"localhost", "127.0.0.1", "::1"} | ({"example.org"} if excepted else set())


@pytest.mark.parametrize(("proxy", "excepted"), [("", "a"), (None, None), ("http://p:1", "*")])
def test_where_no_proxy_is_asked_nothing_is_added(without_proxies, monkeypatch, proxy, excepted):
    for name, value in (("HTTP_PROXY", proxy), ("no_proxy", excepted)):
        if value is not None:
            monkeypatch.setenv(name, value)
    ask_own_machine_directly()
    assert os.environ.get("no_proxy") == excepted


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://a:8765", "http://a:8765"),
        (" HTTPS://a/\n", "HTTPS://a"),
        ("http://a//", "http://a"),
        ("http://a/v1", "http://a"),
        ("http://a/tips/v1/", "http://a/tips"),
        ("http://a/v10", "http://a/v10"),
        ("http://a/api", "http://a/api"),
        ("http://me:hush@[::1]:80", "http://me:hush@[::1]:80"),
    ],
)
def test_an_address_ends_where_paths_begin(url, address):
    assert server_address(url) == server_address(address) == address


@pytest.mark.parametrize("url", ["a:80", "http://", "http://a:70000", "http://a/x?y", "http://a b"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(ValueError, match="write http://"):
        server_address(url)
