"""The rules of the house, held as tests: who imports whom, who touches the world, what is never done with received bytes.

The tables at the head are the contract; `docs/architecture.md` explains it. Everything is read from the syntax trees: no
module is imported here.
"""

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "p2pnn"
TESTS = ROOT / "tests"

EVERYWHERE = {"errors", "types", "__version__"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "types": {"errors"},
    "values": {"identity"},
    "config": {"values"},
    "wire": set(),
    "identity": set(),
    "transport": {"wire", "identity"},
    "cluster": {"wire", "identity"},
    "replication": {"wire"},
    "model": set(),
    "nn": {"model"},
    "zoo": {"nn", "model"},
    "engine": {"model"},
    "job": {"model", "replication"},
    "data": {"job", "model"},
    "train": {"job", "model"},
    "plan": {"job", "model", "train", "ps"},
    "ps": {"job", "model", "train", "wire", "replication"},
    "executor": {"engine", "train", "data", "job", "model", "plan", "ps", "replication", "wire"},
    "node": {
        "config", "wire", "identity", "transport", "cluster", "model", "engine", "job", "data", "train", "plan", "executor",
        "ps", "replication",
    },
    "api": {"node", "config", "wire", "identity", "cluster", "data", "job", "model"},
    "cli": {"zoo", "nn", "data", "job", "model", "config", "values", "plan", "ps"},
    "__main__": {"cli"},
    "__init__": {"cli", "nn", "zoo", "train"},
}  # fmt: skip
"""Layer → the layers below it that it may import. Not in this table: nothing else exists."""

EXCEPTIONS = {
    ("cli/node.py", "api"): "`node start` is the daemon",
}

NETWORK = {"transport", "node", "api", "cli"}
WORLD: dict[str, tuple[set[str], set[str]]] = {
    "asyncio": (NETWORK, {"asyncio", "uvloop", "aiohttp", "concurrent"}),
    "sockets": (
        NETWORK | {"executor"},
        {"socket", "select", "selectors", "ssl", "http", "urllib", "subprocess", "threading"},
    ),
    "disk": (
        NETWORK | {"executor", "data", "config", "values", "model/onnx"},
        {"os", "io", "pathlib", "shutil", "tempfile", "mmap", "glob", "gzip", "zipfile", "fcntl", "open()"},
    ),
    "clocks": (NETWORK | {"executor"}, {"time", "datetime"}),
    "dice": (NETWORK | {"executor", "data"}, {"secrets", "uuid", "random.random()", "default_rng()"}),
}
"""What touches the world → who may, and the modules and calls that do. Everyone else is handed what it needs."""

WORLD_EXCEPTIONS: dict[tuple[str, str], str] = {
    ("identity/authority.py", "datetime"): "certificates carry dates; what time it is, it is told",
    ("data/blobs.py", "threading"): "a lock around the count of bytes: the daemon's threads share one store",
}

CODE_FROM_DATA = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "runpy", "imp", "code"}
CODE_CALLS = {"eval", "exec", "compile", "__import__"}
MAY_IMPORT_BY_NAME = {
    "__init__.py": "p2pnn.nn and p2pnn.train are imported when they are first used; the names are fixed",
    "cli/models.py": "runs the person's own FILE.py:FUNCTION, in the person's own process",
}

DURABLE = [
    "cluster/charter.py",
    "cluster/durable.py",
    "model/graph.py",
    "job/spec.py",
    "job/plan.py",
    "job/checkpoint.py",
    "job/trace.py",
    "job/work.py",
    "data/chunks.py",
]
"""Modules that define what is kept on disk: each has its format's number."""

UNMIRRORED = {"integration", "chaos", "scenarios", "simulator", "support"}
"""Folders of tests that are of no one module."""

UNTESTED_LINES_MAX = 60
UNTESTED_FUNCTION_LINES_MAX = 20
UNTESTED: dict[str, str] = {}
"""Module, or folder with its slash, → why no test of its own: what tests it instead."""

LINES_MAX = 400
EMPTY_WORDS = re.compile(r"manager|helper|utils?\b|handler|\binfo\b", re.IGNORECASE)


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


@functools.cache
def nodes_of(path: Path) -> list[ast.AST]:
    return list(ast.walk(tree_of(path)))


def imports_of(path: Path) -> Iterator[str]:
    """Full names of all modules (and of names taken from `p2pnn` itself) that the file imports, at any depth."""
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno}: write the whole name instead of a relative import"
            if node.module == "p2pnn":
                yield from (f"p2pnn.{alias.name}" for alias in node.names)
            elif node.module:
                yield node.module


def calls_of(path: Path) -> Iterator[str]:
    """What the file calls, as `open`, `random.random`, `np.random.default_rng`; only names and attributes of names."""
    for node in nodes_of(path):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            yield ast.unparse(node.func)


def function_lines(path: Path) -> int:
    """Lines inside of functions, docstrings left out: what there is to test. A module of records has next to none."""
    lines = set()
    for node in nodes_of(path):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines |= {line for statement in body for line in range(statement.lineno, (statement.end_lineno or 0) + 1)}
    return len(lines)


@functools.cache
def world_uses_of(path: Path) -> set[str]:
    uses = {name.partition(".")[0] for name in imports_of(path)}
    for node in nodes_of(path):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called == "open":
            uses.add("open()")
        if called.endswith("default_rng") and not node.args and not node.keywords:
            uses.add("default_rng()")
        elif re.fullmatch(r"(np\.|numpy\.)?random\.[a-z]\w*", called) and not called.endswith("default_rng"):
            uses.add("random.random()")
    return uses


def test_imports_go_down_only() -> None:
    wrong = []
    for path in modules():
        layer = layer_of(path)
        assert layer in MAY_IMPORT, (
            f"p2pnn/{layer} is no layer of the design; add it to the contract with what it may import"
        )
        for imported in imports_of(path):
            parts = imported.split(".")
            if parts[0] != "p2pnn" or len(parts) < 2 or parts[1] in {layer} | EVERYWHERE | MAY_IMPORT[layer]:
                continue
            if (name_of(path), parts[1]) not in EXCEPTIONS:
                wrong.append(f"{name_of(path)} imports {imported}")
    assert not wrong, "\n".join(wrong)


def test_docstrings_are_indented_as_their_code() -> None:
    wrong = [
        f"{name_of(path)}: {line!r}"
        for path in modules()
        for node in nodes_of(path)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        for line in (ast.get_docstring(node, clean=False) or "").splitlines()[1:]
        if re.match(r"( {4})* [A-Za-z`]", line)
    ]
    assert not wrong, "\n".join(wrong)


def test_the_contract_has_no_circle() -> None:
    above: dict[str, set[str]] = {layer: set(MAY_IMPORT[layer]) for layer in MAY_IMPORT}
    while above:
        lowest = {layer for layer, below in above.items() if not below & above.keys()}
        assert lowest, f"these layers import each other: {sorted(above)}"
        above = {layer: below for layer, below in above.items() if layer not in lowest}


@pytest.mark.parametrize("what", WORLD)
def test_only_the_shell_touches_the_world(what: str) -> None:
    allowed, touching = WORLD[what]
    wrong = []
    for path in modules():
        within = name_of(path).removesuffix(".py")
        if any(within == place or within.startswith(place + "/") for place in allowed):
            continue
        wrong += [f"{name_of(path)}: {use}" for use in sorted(world_uses_of(path) & touching)
                  if (name_of(path), use) not in WORLD_EXCEPTIONS]  # fmt: skip
    assert not wrong, "\n".join(wrong)


def test_no_received_byte_becomes_code() -> None:
    wrong = []
    for path in modules():
        imported = {name.partition(".")[0] for name in imports_of(path)}
        wrong += [f"{name_of(path)}: {name}" for name in imported & CODE_FROM_DATA]
        if "importlib" in imported and name_of(path) not in MAY_IMPORT_BY_NAME:
            wrong.append(f"{name_of(path)}: importlib")
        wrong += [
            f"{name_of(path)}: {call}()" for call in calls_of(path) if call.removeprefix("builtins.") in CODE_CALLS
        ]
        for node in nodes_of(path):
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
                wrong.append(f"{name_of(path)}:{node.value.lineno}: allow_pickle")
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith((".load", ".read_array")):
                owner = ast.unparse(node.func).partition(".")[0]
                if owner in ("np", "numpy") and "allow_pickle" not in {keyword.arg for keyword in node.keywords}:
                    wrong.append(f"{name_of(path)}:{node.lineno}: numpy.load without allow_pickle=False")
                if owner == "torch" and "weights_only" not in {keyword.arg for keyword in node.keywords}:
                    wrong.append(f"{name_of(path)}:{node.lineno}: torch.load without weights_only=True")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", DURABLE)
def test_every_durable_format_has_a_number(name: str) -> None:
    numbers = [
        node.value.value
        for node in tree_of(PACKAGE / name).body
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and node.target.id == "FORMAT"
        and isinstance(node.value, ast.Constant)
    ]
    assert len(numbers) == 1, f"{name} defines no FORMAT"
    assert isinstance(numbers[0], int)
    assert numbers[0] >= 1


def test_tests_mirror_the_package() -> None:
    wrong = []
    for path in sorted(TESTS.rglob("test_*.py")):
        relative = path.relative_to(TESTS)
        if relative.parts[0] in UNMIRRORED or relative.name == "test_house.py":
            continue
        module = PACKAGE / relative.with_name(relative.name.removeprefix("test_"))
        of_folder = module.stem == module.parent.name and module.with_name("__init__.py").exists()
        if not module.exists() and not module.with_suffix("").is_dir() and not of_folder:
            wrong.append(f"tests/{relative} tests no module p2pnn/{module.relative_to(PACKAGE)}")
    for path in modules():
        relative = path.relative_to(PACKAGE)
        long = len(path.read_text().splitlines()) > UNTESTED_LINES_MAX
        long &= function_lines(path) > UNTESTED_FUNCTION_LINES_MAX
        stem = relative.parent.name if relative.name == "__init__.py" else relative.stem
        places = [TESTS / relative.parent / f"test_{stem}.py", TESTS / relative.parent.parent / f"test_{stem}.py"]
        excused = any(name_of(path).startswith(name) for name in UNTESTED)
        if long and not excused and not any(place.exists() for place in places):
            wrong.append(f"p2pnn/{relative} has no {places[0].relative_to(ROOT)}")
    assert not wrong, "\n".join(wrong)


def test_lists_name_only_what_exists() -> None:
    for name in [*UNTESTED, *MAY_IMPORT_BY_NAME, *DURABLE, *(one for one, _ in [*EXCEPTIONS, *WORLD_EXCEPTIONS])]:
        assert (PACKAGE / name).exists(), f"the rules name p2pnn/{name}, which is not there"


def test_every_folder_of_tests_is_a_package() -> None:
    """Two test files of one name, in two folders, are told apart only so."""
    folders = {path.parent for path in TESTS.rglob("*.py")}
    assert [str(folder.relative_to(ROOT)) for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


def test_modules_teach_and_stay_small() -> None:
    wrong = []
    for path in modules():
        tree = tree_of(path)
        lines = len(path.read_text().splitlines())
        if tree.body and not ast.get_docstring(tree):
            wrong.append(f"{name_of(path)} has no docstring")
        if lines > LINES_MAX:
            wrong.append(f"{name_of(path)} has {lines} lines: look for the second concept inside")
    assert not wrong, "\n".join(wrong)


def test_names_say_something() -> None:
    wrong = [name_of(path) for path in modules() if EMPTY_WORDS.search(path.stem.replace("_", " "))]
    for path in modules():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef) and re.search("Manager|Helper|Utils?$|Handler$|Info$", node.name):
                wrong.append(f"{name_of(path)}: {node.name}")
    assert not wrong, "\n".join(wrong)


def test_importing_the_package_imports_nothing_heavy() -> None:
    program = "import sys, p2pnn; print(sorted({'numpy', 'msgspec', 'aiohttp', 'asyncio', 'typer'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
