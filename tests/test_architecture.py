"""Data flows one way, so imports do too: a module may use only what stands above it here."""

import ast
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

import reactune

ROOT = Path(reactune.__file__).parent
ROOMS = {"data", "train", "release", "canary"}  # side by side: none may import another
LAYERS = [
    {"errors"},
    {"sections"},
    {"serve_section", "rollout_sections", "data_sections"},
    {"config"},
    {"records"},
    {"schema", "process", "outbox", "privacy", "detect", "tracebacks", "template"},
    {"run_root", "pictures"},
    {"database", "context", "leases", "model", "keyring", "prints", "compaction"},
    {"runs", "people", "search"},
    {"prompt", "run_files"},
    {"store", "scoring", "footprint", "prompt_folder"},
    {"exposures", "keys", "removal"},
    {"recorder", "guard", "journal"},
    ROOMS,
    {"evaluation", "live", "live_models", "progress", "router"},
    {"paperwork", "pairs", "forecast", "deployment", "clearing", "traces", "openfeature_provider"},
    {"arm_files"},
    {"status", "erasing", "trials", "logged_choices"},
    {"service"},
    {"answering"},
    {"pipeline", "review", "serving", "report", "doctor"},
    {"review_steps"},
    {"demo", "web", "client"},
    {"cli"},
]
RANK = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}
MODULES = sorted(path for path in ROOT.rglob("*.py") if path.name != "__init__.py")
FILES = sorted(ROOT.rglob("*.py"))
# What an app's service installs none of, and what makes a start slow.
HEAVY = {
    "torch", "transformers", "trl", "peft", "accelerate", "datasets", "mlflow", "ibis", "pyarrow",
    "pandas", "matplotlib", "gguf", "safetensors", "xllamacpp",
    "fsspec", "s3fs", "spacy", "py3langid",
}  # fmt: skip
TRAIN_SIDE = {
    "train", "evaluation", "pipeline", "review", "review_steps", "live", "report", "pictures",
    "demo", "paperwork", "pairs", "status", "forecast", "deployment", "erasing", "clearing",
    "traces",
}  # fmt: skip


def name_of(path):
    return str(path.relative_to(ROOT).with_suffix("")).replace("/", ".")


def room_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@cache
def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def imports_of(path):
    """Modules that a file names in imports, wherever they stand in it, but for types alone."""
    tree = tree_of(path)
    for_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def our_modules_in(path):
    """Our own modules that a file imports, as files."""
    for name in imports_of(path):
        parts = name.split(".")
        if parts[0] != "reactune":
            continue
        for length in range(len(parts), 1, -1):
            file = ROOT.joinpath(*parts[1:length]).with_suffix(".py")
            if file.is_file():
                yield file
                break


def functions_of(path):
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_upstream(path):
    here = room_of(path)
    if here == "migrations":
        return
    assert here in RANK, f"{here} has no place in LAYERS"
    for other in map(room_of, our_modules_in(path)):
        assert other == here or RANK[other] < RANK[here], f"{here} must not import {other}"


def test_no_modules_import_each_other_in_a_circle():
    left = {path: set(our_modules_in(path)) - {path} for path in MODULES}
    while free := [path for path, needs in left.items() if not needs & left.keys()]:
        for path in free:
            del left[path]
    assert not left, [name_of(path) for path in left]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_module_grows_past_300_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_function_grows_past_60_lines(path):
    lengths = {node.name: node.end_lineno - node.lineno + 1 for node in functions_of(path)}
    assert {name: lines for name, lines in lengths.items() if lines > 60} == {}


def test_nineteen_of_twenty_functions_fit_on_a_screen_of_40_lines():
    lengths = sorted(n.end_lineno - n.lineno + 1 for path in FILES for n in functions_of(path))
    assert lengths[int(0.95 * len(lengths))] <= 40


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_catches_everything(path):
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ExceptHandler):
            caught = "" if node.type is None else ast.unparse(node.type)
            broad = re.findall(r"\b(?:Base)?Exception\b", caught)
            assert caught, f"{path.name}:{node.lineno}"
            assert broad == [], f"{path.name}:{node.lineno}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_the_edges_turn_our_errors_into_answers(path):
    """Nobody else may swallow a ReactuneError, but the doctor, who reports what is wrong."""
    if room_of(path) in {"cli", "web", "doctor"}:
        return
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ExceptHandler) and node.type is not None:
            assert "ReactuneError" not in ast.unparse(node.type), f"{path.name}:{node.lineno}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_signature_is_annotated(path):
    for node in functions_of(path):
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        bare = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
        assert node.returns is not None, f"{path.name}: {node.name} returns what?"
        assert bare == [], f"{path.name}: {node.name}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_module_says_what_it_is_for(path):
    text = ast.get_docstring(tree_of(path))
    assert text, f"{path.name} has no docstring"
    assert len(text.splitlines()[0]) <= 100


def test_files_are_named_after_what_they_hold():
    forbidden = {"utils", "util", "helpers", "common", "base", "core", "manager", "misc"}
    assert [name_of(path) for path in FILES if path.stem in forbidden] == []


def test_only_errors_and_forms_of_data_inherit_from_classes_of_ours():
    parents = {}
    for path in FILES:
        classes = [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.ClassDef)]
        ours = {node.name for node in classes}
        ours |= {n.rpartition(".")[2] for n in imports_of(path) if n.startswith("reactune.")}
        for node in classes:
            parents[node.name] = {ast.unparse(base) for base in node.bases} & ours
    errors = {"ReactuneError"}
    while more := {name for name in parents if parents[name] & errors} - errors:
        errors |= more
    forms = {"Section", "Body"}  # pydantic's settings and requests: one setting for all of them
    heirs = {name: parents[name] - forms for name in parents.keys() - errors}
    assert {name: of for name, of in heirs.items() if of} == {}


def test_there_are_more_functions_than_classes_by_far():
    kinds = Counter(type(node).__name__ for path in FILES for node in ast.walk(tree_of(path)))
    assert kinds["FunctionDef"] > 4 * kinds["ClassDef"]


def test_what_a_service_needs_starts_without_heavy_libraries():
    names = [
        f"reactune.{name_of(path)}"
        for path in MODULES
        if room_of(path) not in TRAIN_SIDE | {"migrations", "openfeature_provider"}
    ]
    assert "reactune.serving" in names
    code = (
        "import sys, importlib\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        f"print(*sorted({HEAVY!r} & sys.modules.keys()))\n"
    )
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "\n", "")


def test_the_database_is_read_and_written_where_its_loss_becomes_one_error():
    opened = [name_of(path) for path in MODULES if "engine.connect()" in path.read_text()]
    # live_models says it in words of its own; the registry tries MLflow's database.
    assert sorted(opened) == ["database", "live_models", "release.registry"]
