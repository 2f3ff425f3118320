"""Write constraints.txt: the versions in this environment of everything that our extras need.

    .venv/bin/python scripts/pin.py

Run it after changing dependencies in pyproject.toml and trying them out. Build tags such as
`+cpu` are left out, so that the same file serves machines with and without a GPU.
"""

from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

FILE = Path(__file__).parent.parent / "constraints.txt"
EXTRAS = {
    "pages", "postgres", "llamacpp", "names", "openfeature", "telemetry", "s3", "reward", "train",
    "ray", "dev",
}  # fmt: skip
HEADER = "# Written by scripts/pin.py: versions that were tried together.\n"


def needed() -> set[str]:
    """Canonical names of all packages that reactune with its extras installs."""
    extras_of: dict[str, set[str]] = {}
    todo = [("reactune", EXTRAS)]
    while todo:
        name, extras = todo.pop()
        known = extras_of.setdefault(name, set())
        if {"", *extras} <= known:
            continue
        known |= {"", *extras}
        try:
            texts = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # no part of this environment, such as GPU libraries on a machine without
        for need in map(Requirement, texts):
            if need.marker is None or any(need.marker.evaluate({"extra": e}) for e in known):
                todo.append((canonicalize_name(need.name), need.extras))
    return set(extras_of) - {"reactune"}


def pinned() -> list[str]:
    """One line per package, sorted."""
    versions = {
        canonicalize_name(found.metadata["Name"]): found.version.partition("+")[0]
        for found in metadata.distributions()
    }
    return [f"{name}=={versions[name]}\n" for name in sorted(needed()) if name in versions]


if __name__ == "__main__":
    FILE.write_text("".join([HEADER, *pinned()]))
