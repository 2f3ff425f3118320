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
        _ask_every_expert(model)
        graph = _traced(model, layers)
    _halve_weights(graph)
    folder.mkdir(parents=True, exist_ok=True)
    onnx_ir.save(graph, folder / GRAPH, external_data=GRAPH_WEIGHTS)
    return GRAPH_FILES


def _ask_every_expert(model: Any) -> None:
    """Of a mixture of experts, compute all for every token: which ones matter no graph can choose.

    Takes as many times longer as there are experts for each one that is used.
    """
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    if not model._can_set_experts_implementation():
        return
    ALL_EXPERTS_FUNCTIONS.register("every_expert", _every_expert)
    model.set_experts_implementation("every_expert")


def _every_expert(experts: Any, states: Any, chosen: Any, shares: Any) -> Any:
    """The sum of all experts of a layer, by each token's shares of those that were chosen for it.

    `states` (tokens, width); `chosen` and `shares` (tokens, experts a token).
    """
    return sum(
        (shares * (chosen == number)).sum(-1, keepdim=True) * _one_expert(experts, number, states)
        for number in range(experts.num_experts)
    )


def _one_expert(experts: Any, number: int, states: Any) -> Any:
    def project(name: str, rows: Any) -> Any:
        weight = getattr(experts, name)[number]
        rows = rows @ (weight if experts.is_transposed else weight.T)
        return rows + getattr(experts, f"{name}_bias")[number] if experts.has_bias else rows

    if experts.has_gate:
        inner = experts._apply_gate(project("gate_up_proj", states))
    else:
        inner = experts.act_fn(project("up_proj", states))
    found = project("down_proj", inner)
    return experts.post_expert_norm(found) if experts.has_post_expert_norm else found


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
