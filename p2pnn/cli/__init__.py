"""The command line: `p2pnn VERB …`.

It reads models and data as the person who calls it, speaks HTTP to the daemon over its unix socket, or starts a local
mesh. Only `node start` runs a daemon in this process, and only it imports the daemon's code. Whatever is slow to
import is imported inside the verb that needs it, so that `p2pnn --help` answers at once.

Exit status: 0 ok, 1 the job failed, 2 usage, 3 no daemon, 4 not allowed, 5 timed out, 78 bad configuration, 130
interrupted. Errors are one sentence on standard error, never a traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Final

import typer
from typer.core import TyperGroup
from typer.main import get_command

from p2pnn.cli import cluster, data, evaluate, export, jobs, node, service, train
from p2pnn.cli import join as joining
from p2pnn.cli.flags import Verb
from p2pnn.errors import P2pnnError

INTERRUPTED: Final = 130
_KINDS: Final = {"valid integer": "a whole number", "valid number": "a number"}


class _Verbs(TyperGroup):
    """The border where errors become a sentence and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            if plain := _in_own_words(error):
                error.message = plain
            raise
        except P2pnnError as error:
            print(f"p2pnn: {error}", file=sys.stderr)
            raise typer.Exit(error.exit_status) from error
        except KeyboardInterrupt as error:
            print("p2pnn: interrupted", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from error
        except BrokenPipeError as error:  # `p2pnn jobs ls | head`: whoever reads has read enough
            sys.stdout = None
            raise typer.Exit(0) from error


def _in_own_words(error: typer.BadParameter) -> str:
    """A value of the wrong kind, in words of ours: numbers are all that is parsed. Empty for any other error."""
    kind = next((words for kind, words in _KINDS.items() if kind in error.message), "")
    if not kind:
        return ""
    found: list[dict[str, Any]] = getattr(error.__cause__, "errors", list)()
    return f"{kind} is wanted here, not {found[0]['input']!r}" if found else f"{kind} is wanted here"


def _show_version(asked: bool) -> None:
    if asked:
        from p2pnn import __version__

        print(f"p2pnn {__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=_Verbs,
    name="p2pnn",
    help="Train neural networks on the machines you have: a mesh of peers without a master.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Print the version."),
) -> None:
    pass


app.command(cls=Verb)(train.train)
app.command(cls=Verb)(train.plan)
app.command("eval")(evaluate.evaluate)
app.command()(evaluate.predict)
app.command()(export.export)
app.add_typer(jobs.app, name="jobs")
app.add_typer(data.app, name="data")
app.add_typer(node.app, name="node")
app.command()(joining.join)
app.add_typer(joining.app, name="token")
app.add_typer(cluster.app, name="cluster")
app.command()(node.peers)
app.add_typer(service.app, name="service")
app.command()(export.paths)


@cache
def _command() -> Callable[..., Any]:
    """What `app` stands for. Every verb's signature is read for it, which takes longer than most verbs do."""
    return get_command(app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    try:
        _command()(args=None if arguments is None else list(arguments), prog_name="p2pnn")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 2
    return 0
