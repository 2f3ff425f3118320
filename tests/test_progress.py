"""Progress bars: what a terminal shows, and what a log holds."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest

THOUSANDS = """
from reactune.progress import progress_bar
with progress_bar("score base", total=20_000, unit="tip") as bar:
    for _ in range(20_000):
        bar.update()
print("result")
"""
STOPPED = """
from reactune.progress import progress_bar
with progress_bar("train kto", total=40, unit="step") as bar:
    bar.show(12, total=50, note="loss 0.500")
    raise SystemExit(3)
"""
BYTES = """
from reactune.progress import progress_bar
with progress_bar("deidentify", total=None, unit="B", is_bytes=True) as bar:
    bar.update(2_340_000)
"""
NOTHING = """
from reactune.progress import progress_bar
with progress_bar("features", total=0, unit="tip"):
    pass
"""


def piped(program):
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    return done.returncode, done.stdout, done.stderr.splitlines()


def on_terminal(program):
    """What a pseudo-terminal of 100 columns receives as standard error, and standard output."""
    primary, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 30, 100, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=terminal,
        text=True,
        env={**os.environ, "TQDM_MININTERVAL": "0"},
    )
    os.close(terminal)
    received = []
    while True:
        try:
            part = os.read(primary, 65_536)
        except OSError:  # Linux' way to say that the terminal was closed
            break
        if not part:
            break
        received.append(part)
    os.close(primary)
    out, _ = process.communicate(timeout=60)
    return out, b"".join(received).decode()


def test_a_log_gets_one_line_at_the_start_and_one_at_the_end():
    code, out, (first, last) = piped(THOUSANDS)
    assert (code, out) == (0, "result\n")
    assert first == "score base: 20,000 tips"
    assert last.startswith("score base: 20,000 tips done after 00:")


def test_a_terminal_gets_a_bar_that_moves_and_leaves_nothing_behind():
    out, received = on_terminal(THOUSANDS)
    assert out == "result\n"
    assert received.count("\r") > 2
    assert "score base:   0%" in received
    assert "20000" in received
    assert "\n" not in received
    assert received.rpartition("\r")[0].endswith(" ")


def test_a_bar_that_is_kept_stays_with_its_note():
    _, received = on_terminal(STOPPED.replace('unit="step"', 'unit="step", is_kept=True'))
    shown = received.rstrip().rpartition("\r")[2]
    assert shown.startswith("train kto:  24%")
    assert "12/50" in shown
    assert "loss 0.500" in shown


def test_work_that_stops_says_how_far_it_came():
    code, _, (first, last) = piped(STOPPED)
    assert code == 3
    assert first == "train kto: 40 steps"
    assert last.startswith("train kto: 12 of 50 steps done after 00:")
    assert last.endswith("; loss 0.500")


@pytest.mark.parametrize(
    ("program", "lines"),
    [(BYTES, ("deidentify: started", "deidentify: 2.34MB done after ")), (NOTHING, ())],
)
def test_sizes_are_readable_and_nothing_to_do_says_nothing(program, lines):
    _, _, written = piped(program)
    assert len(written) == len(lines)
    assert all(line.startswith(start) for line, start in zip(written, lines, strict=True))
