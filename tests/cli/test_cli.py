"""The command line as a whole: what it imports, its exit statuses, and that every verb is an ordinary function."""

import inspect
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer

import p2pnn
from p2pnn.cli import app, main
from p2pnn.errors import JobFailedError, NoDaemonError, NotAllowedError, TimedOutError, UsageError
from tests.cli.fake import FakeDaemon

SLOW = (
    "aiohttp",
    "uvloop",
    "asyncio",
    "numpy",
    "rich",
    "http.client",
    "safetensors",
    "msgspec",
    "p2pnn.node",
    "p2pnn.api",
)


def commands(group: typer.Typer) -> Iterator[Any]:
    for command in group.registered_commands:
        yield command.callback
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        yield from commands(inner.typer_instance)


def test_no_verb_is_a_coroutine() -> None:
    """typer calls it, prints nothing, and exits with 0."""
    found = list(commands(app))
    assert len(found) > 15
    assert [verb.__name__ for verb in found if inspect.iscoroutinefunction(verb)] == []


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["jobs", "--help"], ["--version"]])
def test_help_imports_nothing_slow(arguments: list[str]) -> None:
    code = (
        f"import sys; from p2pnn.cli import main; main({arguments!r}); print([m for m in {SLOW!r} if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"
    assert len(ran.stdout.splitlines()) > 1


def test_the_package_shows_what_is_for_use() -> None:
    assert dir(p2pnn) == ["__version__", "nn", "train", "zoo"]
    assert all(hasattr(p2pnn, name) for name in dir(p2pnn))


def test_every_verb_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "..." not in capsys.readouterr().out.partition("Commands:")[2]  # every sentence is whole
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for verb in ("train", "plan", "eval", "predict", "export", "peers", "paths", "jobs", "data", "node"):
        assert f"\n  {verb} " in out
    assert main(["jobs", "--help"]) == 0
    out = capsys.readouterr().out
    for verb in ("ls", "show", "logs", "cancel", "pause", "resume", "fetch"):
        assert f"\n  {verb} " in out


def test_every_reading_verb_takes_json() -> None:
    reading = {"peers", "list_", "show", "logs", "status", "plan", "evaluate", "predict", "paths", "fetch", "train"}
    found = {verb.__name__: inspect.signature(verb).parameters for verb in commands(app)}
    assert {name for name in reading if "json" not in found[name]} == set()


@pytest.mark.parametrize("kind", [JobFailedError, UsageError, NoDaemonError, NotAllowedError, TimedOutError])
def test_errors_are_one_sentence_and_an_exit_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: type[UsageError]
) -> None:
    def fail(socket: str | None) -> None:
        raise kind("the node b said no")

    monkeypatch.setattr("p2pnn.cli.jobs.connect", fail)
    assert main(["jobs", "ls"]) == kind.exit_status
    assert capsys.readouterr() == ("", "p2pnn: the node b said no\n")


def test_interrupted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(socket: str | None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("p2pnn.cli.jobs.connect", interrupt)
    assert main(["jobs", "ls"]) == 130
    assert capsys.readouterr().err == "p2pnn: interrupted\n"


@pytest.mark.parametrize(
    "arguments", [["trian"], ["train", "--lokal", "3"], ["jobs", "show"], ["train", "--epochs", "x"]]
)
def test_words_that_are_not_known(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_no_daemon(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["peers"]) == 3
    assert "start one with `p2pnn node start`" in capsys.readouterr().err


def test_a_reader_that_has_read_enough(daemon: FakeDaemon) -> None:
    jobs = [{"job": f"j-{n}", "kind": "train", "state": "done", "nodes": [], "epochs": 0} for n in range(20000)]
    daemon["GET jobs"] = {"jobs": jobs}
    command = f"{sys.executable} -m p2pnn jobs ls --socket {daemon.path} | head -1"
    ran = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert ran.stdout.startswith("job")
    assert ran.stderr == ""
    assert ran.returncode == 0


@pytest.mark.parametrize("words", [["paths"], ["paths", "--json"]])
def test_an_answer_that_cannot_be_written_is_one_sentence(words: list[str]) -> None:
    command = [sys.executable, "-m", "p2pnn", *words]
    with open("/dev/full", "w") as full:
        ran = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ran.stderr == "p2pnn: standard output cannot be written: No space left on device\n"
    assert ran.returncode == 1
    closed = subprocess.run(
        ["bash", "-c", '"$@" >&-', "bash", *command], stderr=subprocess.PIPE, text=True, check=False
    )
    assert (closed.stderr, closed.returncode) == ("", 0)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"p2pnn {p2pnn.__version__}\n"


def test_as_a_module() -> None:
    ran = subprocess.run([sys.executable, "-m", "p2pnn", "--version"], capture_output=True, text=True, check=True)
    assert ran.stdout == f"p2pnn {p2pnn.__version__}\n"
