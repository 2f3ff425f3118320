"""Runs in a back-end's own environment: what its own collator makes of a job, as JSON.

python backend_batches.py MODULE job.json OUT
"""

import importlib
import json
import sys
from pathlib import Path


def main(module, path, out):
    """Write the batches that the back-end's trainer would train on."""
    backend = importlib.import_module(module)
    from reactune.train.job import read_job, read_rows

    job = read_job(path)
    trainer = backend.trainer_for(path.parent, job, read_rows(path.parent, job))
    batches = [
        {name: batch[name].tolist() for name in ("input_ids", "labels", "attention_mask")}
        for batch in trainer.get_train_dataloader()
    ]
    out.write_text(json.dumps(batches))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]).absolute(), Path(sys.argv[3]).absolute())
