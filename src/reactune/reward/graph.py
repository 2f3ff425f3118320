"""The layers of the base model that a reward reads, as one ONNX graph: what serving computes.

A graph takes the inputs that `features.pass_of` makes and gives the features of each tip. It needs
ONNX Runtime, and neither torch nor transformers.
"""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from reactune.errors import ReleaseError
from reactune.model.files import BaseModel, new_folder
from reactune.reward.features import open_layers, pass_of, states_after

GRAPH = "features.onnx"
GRAPH_WEIGHTS = "features.bin"  # beside the graph, which names it
GRAPH_FILES = (GRAPH, GRAPH_WEIGHTS)
FORMAT = 1  # raise it when graphs in the cache must be written again
KEPT_NUMBERS = 4_096  # at most, in a tensor that stays float32: norms and constants


def graph_of(base: BaseModel, layers: Sequence[int], *, cache: Path) -> Path:
    """The folder of a base model's graph for some layers, written to the cache if it is not there.

    Raises:
        ReleaseError: as `write_graph`.
    """
    names = "-".join(map(str, layers))
    folder = cache / "graphs" / f"{base.digest[:16]}-{names}-g{FORMAT}"
    if not folder.is_dir():
        with new_folder(folder) as partial:
            write_graph(base.folder, layers, partial)
    return folder


def write_graph(base_folder: Path, layers: Sequence[int], folder: Path) -> tuple[str, ...]:
    """Write the base model up to the last of `layers` as a graph; the names of the two files.

    Weights are stored as float16 and computed with as float32.

    Raises:
        ReleaseError: what writes graphs is not installed, or knows no way to write this model.
    """
    try:
        import onnx_ir
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ReleaseError(
            f"writing a reward's features needs {error.name}; run `pip install 'reactune[train]'`"
        ) from error
    with open_layers(base_folder, layers[-1], dtype="float32") as model, _quiet():
        model.set_attn_implementation("eager")
        graph = _traced(model, layers)
    _halve_weights(graph)
    folder.mkdir(parents=True, exist_ok=True)
    onnx_ir.save(graph, folder / GRAPH, external_data=GRAPH_WEIGHTS)
    return GRAPH_FILES


def _traced(model: Any, layers: Sequence[int]) -> Any:
    """The model's graph, for any number of tokens and tips."""
    import torch

    class Features(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Any, mask: Any, positions: Any, pooling: Any) -> Any:
            states = states_after(
                self.model,
                layers,
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                use_cache=False,
            )
            return pooling @ states[0]

    example = pass_of((1, 2, 3), [(1, 2, 3), (1, 2)])
    tokens, tips = torch.export.Dim("tokens", min=2), torch.export.Dim("tips", min=1)
    try:
        program = torch.onnx.export(
            Features().eval(),
            tuple(map(torch.from_numpy, example.values())),
            dynamo=True,
            input_names=list(example),
            output_names=["features"],
            dynamic_shapes=({1: tokens}, {2: tokens, 3: tokens}, {1: tokens}, {0: tips, 1: tokens}),
            optimize=False,  # ONNX Runtime does that when it loads the graph
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        raise ReleaseError(
            f"{type(model).__name__} cannot be written as an ONNX graph: {reason}"
        ) from error
    return program.model


def _halve_weights(model: Any) -> None:
    """Store large weights as float16, each followed by a cast to float32."""
    import onnx_ir

    graph = model.graph
    for node in graph:
        node.metadata_props.clear()  # where in whose source each comes from
    for value in list(graph.initializers.values()):
        stored = value.const_value
        if stored.dtype != onnx_ir.DataType.FLOAT or stored.size <= KEPT_NUMBERS:
            continue
        half = onnx_ir.tensor(stored.numpy().astype(np.float16), name=f"{value.name}.half")
        source = onnx_ir.val(half.name, const_value=half)
        cast = onnx_ir.node("Cast", [source], {"to": onnx_ir.DataType.FLOAT})
        onnx_ir.convenience.replace_all_uses_with(value, cast.outputs[0])
        del graph.initializers[value.name]
        graph.initializers.add(source)
        graph.insert_before(graph[0], cast)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of itself."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
