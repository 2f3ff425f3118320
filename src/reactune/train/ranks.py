"""Which of several processes this is: what their launcher put into the environment.

How they are started is in `launch.py`.
"""

import os


def processes() -> int:
    """How many processes train together; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the process that writes files."""
    return os.environ.get("RANK", "0") == "0"


def on_any_process(here: bool) -> bool:
    """Whether it is so on any process: all must take the same decision, or they wait for ever."""
    if processes() == 1:
        return here
    import torch
    from accelerate import PartialState

    found = torch.tensor(int(here), device=PartialState().device)
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    return bool(found.item())
