"""The command line in an empty folder."""

import pytest

from cli_fixtures import KEY
from reactune.cli import main


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder, and a key in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REACTUNE_KEY", KEY)
    monkeypatch.delenv("REACTUNE_CONFIG", raising=False)
    return tmp_path


@pytest.fixture
def call(here, capsys):
    """Call the command line; exit code, output and errors come back."""

    def run(*arguments):
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return caught.value.code, out, err

    return run
