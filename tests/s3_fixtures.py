"""A real S3 server of our own, for runs that are kept at a URL."""

import socket
import subprocess
import sys
import time
import uuid

import pytest

from server_fixtures import free_port


@pytest.fixture(scope="session")
def _s3_environment():
    """A running S3 server of our own, as the environment that leads there."""
    pytest.importorskip("moto", reason="moto, the S3 server, is not installed")
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    port = free_port()
    # The server ends with these tests, even when they are killed.
    command = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "moto.server"]
    with subprocess.Popen(
        [*command, "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as server:
        try:
            _wait_until_it_listens(port, server)
            yield {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
                "AWS_ACCESS_KEY_ID": "tests",
                "AWS_SECRET_ACCESS_KEY": "tests",
                "AWS_DEFAULT_REGION": "us-east-1",
            }
        finally:
            server.kill()


@pytest.fixture
def s3_url(_s3_environment, monkeypatch):
    """A place of our own on a running S3 server; the environment leads there."""
    import s3fs

    for name, value in _s3_environment.items():
        monkeypatch.setenv(name, value)
    bucket = f"bucket-{uuid.uuid4().hex}"
    s3fs.S3FileSystem().mkdir(bucket)
    return f"s3://{bucket}/runs"


def _wait_until_it_listens(port, server):
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError as error:
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the S3 server did not start") from error
            time.sleep(0.1)
