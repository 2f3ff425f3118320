"""Runs in Axolotl's environment: our settings, checked by Axolotl's schema as for a GPU.

python axolotl_schema.py job.json OUT
"""

import json
import sys
from pathlib import Path

GPU = {"bf16": True, "fp8": False, "tf32": True, "n_gpu": 1, "compute_capability": "sm_90"}


def main(path, out):
    """Write what the schema made of the settings."""
    import torch
    import yaml
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault

    from reactune.train.job import read_job, read_rows
    from reactune.train.with_axolotl import write_settings

    job = read_job(path)
    file = write_settings(path.parent, job, read_rows(path.parent, job))
    written = yaml.safe_load(file.read_text())
    version = str(torch.__version__).partition("+")[0]
    checked = validate_config(
        DictDefault(written), capabilities=GPU, env_capabilities={"torch_version": version}
    )
    unknown = sorted(set(written) - set(checked.to_dict()))
    assert not unknown, f"Axolotl dropped {unknown}"
    out.write_text(json.dumps({name: plain(checked.get(name)) for name in (*written, "rl")}))


def plain(value):
    """The value as JSON knows it; enumerations as their text."""
    value = getattr(value, "value", value)
    return value if isinstance(value, str | int | float | bool | list | None) else str(value)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), Path(sys.argv[2]).absolute())
