"""A release on disk: the GGUF that is served and the prompt folder a service needs for it.

The numbers come from `gguf.py` and `prompt.py`; registering and serving are others' work.
"""

import json
from dataclasses import asdict
from pathlib import Path

from reactune.config import ExportConfig
from reactune.model import BaseModel
from reactune.prompt import Chat
from reactune.prompt_folder import write_prompt_folder
from reactune.records import ModelVersion, write_atomically
from reactune.release.gguf import export_base, export_merged

GGUF = "model.gguf"
PROMPT = "prompt"
NOTE = "release.json"


def export_release(
    base: BaseModel,
    chat: Chat,
    adapter: Path | None,
    folder: Path,
    *,
    run_id: str,
    settings: ExportConfig,
) -> ModelVersion:
    """Write GGUF and prompt folder; the base itself is exported the same way, without adapter.

    The version that is returned has number 0 and a name of its own: it is on trial until it is
    registered.

    Raises:
        ReleaseError: the base has no GGUF, or the adapter cannot be merged into it.
    """
    out = folder / GGUF
    quantisation = settings.quantisation
    exported = (
        export_base(base, out, quantisation=quantisation)
        if adapter is None
        else export_merged(base, adapter, out=out, quantisation=quantisation)
    )
    write_prompt_folder(chat, base.folder, folder / PROMPT)
    return ModelVersion(
        version=0,
        name=f"reactune-trial:{exported.sha256[:12]}",
        run_id=run_id,
        gguf=out,
        sha256=exported.sha256,
        prompt_folder=folder / PROMPT,
        base=base.name,
        quantisation=quantisation,
        adapter=adapter,
    )


def write_release(release: ModelVersion) -> tuple[str, ...]:
    """Note the release beside its GGUF; names of all that a model server or `read_release` needs.

    They are relative to the folder of the GGUF.
    """
    folder = release.gguf.parent
    write_atomically(folder / NOTE, json.dumps(asdict(release), default=str))
    files = (release.gguf, *sorted(release.prompt_folder.iterdir()), folder / NOTE)
    return tuple(file.relative_to(folder).as_posix() for file in files)


def read_release(run: Path) -> ModelVersion:
    """The release of a run, with its files where they lie here."""
    folder = run / "export"
    values = json.loads((folder / NOTE).read_text(encoding="utf-8"))
    # Another worker may have written it, so its folders say nothing.
    adapter = run / "train" / "adapter" if values["adapter"] else None
    paths = {"gguf": folder / GGUF, "prompt_folder": folder / PROMPT, "adapter": adapter}
    return ModelVersion(**{**values, **paths})
