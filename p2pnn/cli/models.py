"""MODEL: from the words on the command line to a graph.

`file.py:function` is run here, in the command line's own process, by the person who named it; what leaves this process is
the graph alone. A name of the zoo gets its shape and classes from the data. A saved `graph.msgpack` is taken as it is.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Final, get_type_hints

import msgspec

from p2pnn.config import unknown
from p2pnn.errors import ModelError, P2pnnError, UsageError
from p2pnn.model.graph import Graph

ARGUMENT_MAX: Final = 1_000_000
"""Of layers, widths and the like in a network of the zoo: far beyond what any machine holds."""


_WORDS: Final = {
    "Expected": "expected",
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "array": "a list",
}


def load(source: str, arguments: Mapping[str, Any], shape: tuple[int, ...], classes: int) -> Graph:
    """The verified graph of a MODEL. shape: of one row of the data's input, with channels; classes: how many labels.

    Raises UsageError or ModelError with one sentence: no such file, function or name; what the function raised.
    """
    if ".py:" in source:
        path, _, name = source.rpartition(":")
        return graph_of(_called(Path(path), name, arguments), f"{source}")
    if source.endswith(".py"):
        raise UsageError(f"{source} is a file; name the function in it that builds the model, as in {source}:net")
    if source.endswith(".msgpack"):
        return read_graph(Path(source))
    if "/" in source or source.endswith(".onnx"):
        raise UsageError(f"{source} is no model: write FILE.py:FUNCTION, a name of the zoo, or a run's graph.msgpack")
    return _from_zoo(source, arguments, shape, classes)


def is_zoo_name(source: str) -> bool:
    return bool(source) and ":" not in source and "/" not in source and "." not in source


def check_exists(source: str) -> None:
    """Refuse a MODEL that cannot be there, before the data is read: a missing file, or a name that the zoo has not."""
    if is_zoo_name(source):
        from p2pnn import zoo

        if source not in zoo.names():
            raise UsageError(unknown("no network of the zoo is called", source, zoo.names()))
        return
    path = Path(source.rpartition(":")[0] if ".py:" in source else source)
    if not path.is_file():
        raise UsageError(f"no model file {path}")


def read_graph(path: Path) -> Graph:
    """A saved graph, verified. Raises UsageError for a missing file, ModelError for one that is no valid graph."""
    from p2pnn.model.verify import verify

    try:
        graph = msgspec.msgpack.decode(path.read_bytes(), type=Graph)
    except FileNotFoundError as error:
        raise UsageError(f"no graph file {path}") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, RecursionError) as error:
        raise ModelError(f"{path} is not a graph of p2pnn: {error}") from error
    verify(graph)
    return graph


def graph_of(model: Any, what: str) -> Graph:
    """The graph of an nn.Model (or a graph itself). Raises ModelError for anything else."""
    found = getattr(model, "graph", model)
    if not isinstance(found, Graph):
        kind = type(model).__name__
        raise ModelError(
            f"{what} gave {'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}; it must return nn.Model(outputs=…, loss=…)"
        )
    return found


def _from_zoo(name: str, arguments: Mapping[str, Any], shape: tuple[int, ...], classes: int) -> Graph:
    from p2pnn import zoo

    if name not in zoo.names():
        raise UsageError(unknown("no network of the zoo is called", name, zoo.names()))
    if not classes:
        raise ModelError(f"{name} tells classes apart, but the data's labels are not classes")
    build: Callable[..., Any] = zoo.MODELS[name]
    given = {"classes": classes, "shape": shape, **arguments}
    _check_arguments(build, name, given)
    for argument, kind in get_type_hints(build).items():
        if argument in given:
            given[argument] = _of_kind(f"{name}: {argument}", given[argument], kind)
    return graph_of(build(**given), name)


def _of_kind(what: str, value: Any, kind: Any) -> Any:
    """The value of an argument. Raises UsageError where it is of another kind, or larger than any network has."""
    try:
        found = msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        said = re.sub(r"\w+", lambda word: _WORDS.get(word[0], word[0]), str(error).replace("`", ""))
        raise UsageError(f"{what} = {value!r}: {said}") from error
    numbers = found if isinstance(found, list | tuple) else [found]
    if any(isinstance(number, int) and abs(number) > ARGUMENT_MAX for number in numbers):
        raise UsageError(f"{what} = {value!r}: it is at most {ARGUMENT_MAX:,}")
    return found


def _called(path: Path, name: str, arguments: Mapping[str, Any]) -> Any:
    module = _imported(path)
    function = getattr(module, name, None)
    if function is None or not callable(function):
        own = [n for n, f in vars(module).items() if inspect.isfunction(f) and f.__module__ == module.__name__]
        raise UsageError(unknown(f"{path} has no function", name, own))
    _check_arguments(function, f"{path.name}:{name}", arguments)
    try:
        return function(**arguments)
    except P2pnnError:
        raise
    except (Exception, SystemExit) as error:  # sys.exit() in a model must not end this process without a word
        raise ModelError(f"{path.name}:{name} raised {_told(error, path)}") from error


def _imported(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"no model file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    known = sys.modules.get(path.stem)
    if known is None:  # so that dataclasses and the like find their module; never over one that is there
        sys.modules[path.stem] = module
    sys.path.insert(0, folder)  # the file's neighbours, as `python file.py` would find them
    try:
        spec.loader.exec_module(module)
    except P2pnnError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, OSError) and error.filename == str(path):
            raise ModelError(f"{path} cannot be read: {error.strerror}") from error
        raise ModelError(f"{path} raised {_told(error, path)}") from error
    finally:
        sys.path.remove(folder)
    return module


def _check_arguments(function: Any, name: str, given: Mapping[str, Any]) -> None:
    try:
        signature = inspect.signature(function)
        signature.bind(**given)
    except TypeError as error:
        extra = [key for key in given if key not in signature.parameters]
        if extra:
            raise UsageError(unknown(f"{name} has no argument", extra[0], signature.parameters)) from error
        raise UsageError(f"{name}: {error}; give it under [model] arguments of a job file") from error


def _told(error: BaseException, path: Path) -> str:
    """`ValueError on line 12: …`: the line of the person's own file where it came from."""
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    said = str(error)
    if isinstance(error, SyntaxError):
        line, said = error.lineno, error.msg
    elif isinstance(error, SystemExit):
        said = f"it ended itself with {error.code!r}; a model's file must not"
    at = f" on line {line}" if line else ""
    return f"{type(error).__name__}{at}: {said}"
