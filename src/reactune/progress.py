"""Progress bars of long work, on the terminal's error stream.

What is done meanwhile is others' work.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from tqdm import tqdm


@contextmanager
def progress_bars() -> Iterator[Callable[[Any], Callable[[dict[str, Any]], None]]]:
    """A function that opens the bar of a training job, and ends the one before."""
    with ExitStack() as stack:

        def open_bar(job: Any) -> Callable[[dict[str, Any]], None]:
            stack.close()
            bar = stack.enter_context(
                tqdm(total=job.steps, desc=f"train {job.method}", unit="step")
            )

            def show(line: dict[str, Any]) -> None:
                if "scored" in line:
                    bar.set_postfix_str(f"base model asked {line['scored']:,} of {line['of']:,}")
                    return
                left = int(line["seconds_left"])
                bar.set_postfix_str(
                    f"loss {line['loss']:.3f}, {line['tokens_per_second']:.0f} tokens/s, "
                    f"{left // 60}:{left % 60:02d} left"
                )
                bar.update(line["step"] - bar.n)

            return show

        yield open_bar
