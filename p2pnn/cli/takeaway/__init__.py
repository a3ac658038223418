"""The scripts of the take-away folder: the trained network without p2pnn.

`predict.py` needs numpy alone, `load_torch.py` torch; both are generated from the graph as straight-line code, one line
per op, so that a reader sees the network. They hold what is needed and no more: the functions that the network uses are
copied from `numpy_ops` and `torch_ops`. Scaling and class names are included: both take the raw numbers of the data.
"""

from __future__ import annotations

import ast
import builtins
import keyword
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from p2pnn.cli.takeaway.lines import NUMPY, TORCH, Line
from p2pnn.errors import ModelError
from p2pnn.model.flow import Flow
from p2pnn.model.graph import Graph, Scaling
from p2pnn.model.text import ports

_TEMPLATES: Final = Path(__file__).parent
_WRITING_FLAGS: Final = "--help tells of --length, --temperature, --top-k and --seed"


def predict_script(graph: Graph) -> str:
    """The text of predict.py: reads model.safetensors beside it, `python predict.py input.npy`."""
    names = _Names(graph)
    body, used = _body(graph, names, NUMPY, lambda name: f"w[{name!r}]")
    ops = _functions("numpy_ops", used)
    arguments = ", ".join(names.of(value.name) for value in graph.inputs if value.name in names.wanted)
    scaled = _scaling(graph, names, "np.array({0}, dtype=np.float32)")
    outputs = ", ".join(f"{key!r}: {names.of(value)}" for key, value in graph.outputs.items())
    text = _fill(
        "predict.txt",
        name=_plain(graph.name),
        classes=repr(list(graph.classes)),
        shapes=repr(names.shapes),
        functions=ops,
        arguments=arguments,
        body=_indent([*scaled, *body, f"return {{{outputs}}}"], 4),
        **_writing(graph),
    )
    ast.parse(text)
    return text


def torch_script(graph: Graph) -> str:
    """The text of load_torch.py: `from load_torch import model; net = model()`."""
    names = _Names(graph, reserved=("self", "torch", "F", "load_file", "math", "Path"))
    body, used = _body(graph, names, TORCH, lambda name: f"w[{name!r}]")
    arguments = ", ".join(names.of(value.name) for value in graph.inputs if value.name in names.wanted)
    scaled = _scaling(graph, names, "torch.tensor({0}, device={1}.device)")
    outputs = ", ".join(f"{key!r}: {names.of(value)}" for key, value in graph.outputs.items())
    made = [
        f"self.register_parameter({p.name!r}, torch.nn.Parameter(torch.zeros({p.shape})))" for p in graph.parameters
    ]
    made += [f"self.register_buffer({p.name!r}, torch.zeros({p.shape}))" for p in graph.state]
    text = _fill(
        "load_torch.txt",
        name=_plain(graph.name),
        classes=repr(list(graph.classes)),
        shapes=repr(names.shapes),
        functions=_functions("torch_ops", used),
        made=_indent(made, 8),
        arguments=arguments,
        body=_indent([*scaled, *body, f"return {{{outputs}}}"], 8),
    )
    ast.parse(text)
    return text


class _Names:
    """Value names as Python identifiers, each its own.

    wanted: the values that the outputs need. shapes: of one row, by graph input among them.
    """

    def __init__(
        self, graph: Graph, reserved: tuple[str, ...] = ("np", "json", "math", "os", "sys", "Path", "w")
    ) -> None:
        flow = Flow(graph)
        self.ops = [graph.ops[i] for i in sorted(flow.needed(*graph.outputs.values()))]
        self.wanted = {name for op in self.ops for name in op.inputs} | set(graph.outputs.values())
        self.shapes = {v.name: v.shape[1:] for v in graph.inputs if v.name in self.wanted}
        self._taken = {*reserved, *dir(builtins), *keyword.kwlist, "w", *_ALL_FUNCTIONS}
        self._given: dict[str, str] = {}

    def of(self, value: str) -> str:
        if value not in self._given:
            base = re.sub(r"\W+", "_", value, flags=re.ASCII).strip("_").lower() or "value"
            base = f"v_{base}" if base[0].isdigit() else base
            name, number = base, 2
            while name in self._taken:
                name, number = f"{base}_{number}", number + 1
            self._taken.add(name)
            self._given[value] = name
        return self._given[value]


def _body(
    graph: Graph, names: _Names, table: dict[str, tuple[tuple[str, ...], Line]], weight: Callable[[str], str]
) -> tuple[list[str], set[str]]:
    """One assignment per op that the outputs need, and the template functions they call."""
    tensors = {p.name for p in (*graph.parameters, *graph.state)}
    lines, used = [], set[str]()
    for op in names.ops:
        if op.kind not in table:
            raise ModelError(f"{op.name}: operator {op.kind} has no place in a take-away script")
        functions, line = table[op.kind]
        used |= set(functions)
        inputs = [weight(name) if name in tensors else names.of(name) for name in op.inputs if name]
        targets = ", ".join(names.of(name) for name in op.outputs)
        lines.append(f"{targets}{',' if op.kind == 'Split' and len(op.outputs) == 1 else ''} = {line(op, inputs)}")
    return lines, used


def _scaling(graph: Graph, names: _Names, array: str) -> list[str]:
    """Lines that bring raw inputs to what the graph sees: rows of its shape, and (raw − shift) · scale as float32."""
    lines = []
    for value in graph.inputs:
        if value.name not in names.wanted:
            continue
        name, shape = names.of(value.name), value.shape[1:]
        lines.append(f"{name} = rows({name}, {value.name!r}, {value.dtype!r})")
        scaling = graph.scaling.get(value.name)
        if scaling is None or scaling == Scaling() or value.dtype != "float32":
            continue
        axes = (-1,) + (1,) * (len(shape) - 1)

        def numbers(of: tuple[float, ...], name: str = name, axes: tuple[int, ...] = axes) -> str:
            return repr(of[0]) if len(of) == 1 else f"{array.format(list(of), name)}.reshape({axes})"

        shifted = f"({name} - {numbers(scaling.shift)})" if any(scaling.shift) else name
        lines.append(f"{name} = {shifted} * {numbers(scaling.scale)}")
    return lines


def _functions(module: str, used: set[str]) -> str:
    """The source of the used functions and of those that they call, in the module's order."""
    source = (_TEMPLATES / f"{module}.py").read_text("utf-8")
    found = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    wanted, stack = set[str](), list(used)
    while stack:
        name = stack.pop()
        if name in found and name not in wanted:
            wanted.add(name)
            stack += [n.id for n in ast.walk(found[name]) if isinstance(n, ast.Name)]
    parts = []
    for name, node in found.items():
        if name in wanted:
            node.returns = None
            for argument in (*node.args.args, *node.args.kwonlyargs):
                argument.annotation = None
            parts.append(ast.unparse(node))
    return "\n\n\n".join(parts) + "\n\n\n" if parts else ""


def _writing(graph: Graph) -> dict[str, str]:
    """What a network of text has beside the others: it goes on with a prompt."""
    try:
        found = ports(graph)
    except ModelError:
        return dict.fromkeys(("usage", "imports", "writing", "choice"), "")
    logarithms = "np.log(scores)" if found.probabilities else "scores"
    return {
        "usage": f"    python predict.py --prompt TEXT               goes on with a text; {_WRITING_FLAGS}\n",
        "imports": "import argparse\nimport hashlib\nimport itertools\n",
        "writing": _fill("write.txt", context=str(found.context), key=repr(found.key), logarithms=logarithms),
        "choice": '    if not arguments or arguments[0].startswith("--"):\n        return go_on(arguments)\n',
    }


def _fill(template: str, **values: str) -> str:
    text = (_TEMPLATES / template).read_text("utf-8")
    return re.sub(r"«(\w+)»", lambda found: values[found[1]], text)


def _indent(lines: list[str], spaces: int) -> str:
    return "\n".join(" " * spaces + line for line in lines) or " " * spaces + "pass"


def _plain(name: str) -> str:
    """A name that may stand inside a docstring, whoever chose it."""
    return re.sub(r"[^\w .,+-]", "_", name)


_ALL_FUNCTIONS: Final = (
    *("load", "rows", "main", "predict", "read", "model", "Model", "FOLDER", "CLASSES", "SHAPES", "W"),
    *(name for table in (NUMPY, TORCH) for functions, _ in table.values() for name in functions),
    *("windows_of", "padded", "erf", "write", "go_on", "argparse", "hashlib", "itertools", "CONTEXT"),
)
"""Names that a script has already: values get others."""
