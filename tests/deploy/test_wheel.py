"""The wheel in empty environments: what it holds, and what it does there with how little."""

import contextlib
import json
import os
import subprocess
import sys
import time
import zipfile
from datetime import UTC, datetime

import httpx
import pytest

import reactune
from loop_fixtures import SECRET, copy_of_trained, reactions
from places import REPOSITORY
from reactune import review
from server_fixtures import free_port, shown_tip

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """What `make build` makes."""
    folder = tmp_path_factory.mktemp("build")
    places = [f"BUILD_ENV={folder / 'environment'}", f"DIST={folder / 'dist'}"]
    made = run("make", "build", f"PYTHON={sys.executable}", *places, cwd=REPOSITORY)
    assert made.stdout.count("PASSED") == 2
    (file,) = (folder / "dist").glob("*.whl")
    return file


@pytest.fixture(scope="module")
def programs(wheel, tmp_path_factory):
    """The programs of an environment with nothing but the wheel and what it cannot be without."""
    folder = tmp_path_factory.mktemp("empty") / "environment"
    run(sys.executable, "-m", "venv", folder)
    install(folder / "bin", str(wheel))
    return folder / "bin"


def run(*command, **how):
    """Run a command to its end; skip where the package index cannot be reached."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **how)
    said = done.stdout + done.stderr
    if "NewConnectionError" in said or "NameResolutionError" in said:
        pytest.skip("pip cannot reach a package index")
    assert done.returncode == 0, said
    return done


def install(programs, what):
    pins = REPOSITORY / "constraints.txt"
    run(programs / "python", "-m", "pip", "install", "--quiet", "-c", pins, what)


def call(programs, folder, *arguments):
    """`reactune ...` of that environment, in a folder, without this process' paths."""
    return subprocess.run(
        [programs / "reactune", *arguments],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )


@contextlib.contextmanager
def serving(programs, folder, port):
    """`reactune serve`, from when it is alive; it ends cleanly when asked to."""
    url = f"http://127.0.0.1:{port}"
    command = [programs / "reactune", "serve"]
    log = folder / "serve.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command, cwd=folder, env=environment(), stdout=output, stderr=output
        ) as process,
    ):
        try:
            deadline = time.monotonic() + 120
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    if httpx.get(f"{url}/healthz").is_success:
                        break
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            yield url
        finally:
            process.terminate()
        assert process.wait(60) == 0, log.read_text()


def environment():
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**kept, "REACTUNE_KEY": SECRET}


def test_the_wheel_holds_what_it_needs_and_no_tests(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    source = REPOSITORY / "src"
    ours = {
        str(path.relative_to(source))
        for path in (source / "reactune").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if ".dist-info/" not in name} == ours
    for needed in (
        "py.typed", "pages/templates/file.html.jinja", "pages/pages.css", "demo/pool.jsonl.gz",
        "store/migrations/versions/v0001_first_tables.py",
    ):  # fmt: skip
        assert f"reactune/{needed}" in ours
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_without_extras_it_prints_its_version_ingests_and_names_what_is_missing(programs, tmp_path):
    assert call(programs, tmp_path, "--version").stdout.split()[-1] == reactune.__version__
    assert "ingest" in call(programs, tmp_path, "--help").stdout
    assert call(programs, tmp_path, "init").returncode == 0
    rows = "".join(json.dumps(row) + "\n" for row in reactions(20))
    (tmp_path / "rows.jsonl").write_text(rows)
    taken = call(programs, tmp_path, "ingest", "rows.jsonl")
    assert taken.stdout.startswith("rows: 20 in, 20 kept, 0 rejected"), taken.stderr
    seen = call(programs, tmp_path, "doctor")
    assert seen.returncode == 1
    assert "tips: 20" in seen.stdout
    assert "reactune[train]" in seen.stdout
    trained = call(programs, tmp_path, "run")
    assert trained.returncode == 1
    assert trained.stderr.startswith("reactune: this command needs ")
    assert "pip install 'reactune[train]'" in trained.stderr
    served = call(programs, tmp_path, "serve")
    assert served.returncode == 1
    assert "nothing is live yet" in served.stderr


def test_without_extras_the_service_answers_and_waits_for_its_ollama(programs, tmp_path):
    nobody = f"http://127.0.0.1:{free_port()}"
    port = free_port()
    settings = {"runtime": "ollama", "ollama_url": nobody, "port": port}
    copy_of_trained(tmp_path, serve=settings)
    with serving(programs, tmp_path, port) as url:
        assert httpx.get(f"{url}/healthz").json() == {"status": "alive"}
        assert httpx.get(f"{url}/readyz").status_code == 503


def test_the_service_writes_tips_with_llamacpp_and_no_more(programs, tmp_path):
    install(programs, "xllamacpp")
    port = free_port()
    config = copy_of_trained(tmp_path, serve={"port": port})
    review.promote(config, now=datetime.now(UTC))
    with serving(programs, tmp_path, port) as url:
        asked = {"user": "u-1", "kind": "focus", "context": {"time_of_day": "night"}}
        assert shown_tip(url, asked)["content"]
