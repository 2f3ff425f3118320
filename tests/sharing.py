"""What is made once for all parallel test processes."""

import fcntl
import os
import shutil
from pathlib import Path


def made_once(name, make):
    """A folder that one of the parallel test processes fills by `make(folder)` for all of them."""
    folder = Path(os.environ["REACTUNE_TEST_SHARED"]) / name
    with (folder.parent / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = folder.parent / f"{name}.done"
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            done.touch()
    return folder
