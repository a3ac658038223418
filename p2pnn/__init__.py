"""p2pnn trains neural networks on the machines that people already have: a mesh of peers without a master.

From Python:

    import p2pnn
    from p2pnn import nn

    run = p2pnn.train(net(), data={"image": x, "label": y}, epochs=5)
    run.follow()
    run.parameters()

`p2pnn.train` is both the package of training mathematics and this function: a package that can be called. Importing p2pnn
imports nothing else; what a name needs is imported when it is first used.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "nn", "train", "zoo"]


class _CallableModule(ModuleType):
    """`p2pnn.train(model, data=…)`; see `p2pnn.cli.session.train` for the arguments."""

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        session = importlib.import_module("p2pnn.cli.session")
        return session.train(*arguments, **settings)


class _Package(ModuleType):
    """The import system sets a submodule as its parent's attribute: there `train` becomes callable, whoever imports it first."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "train" and isinstance(value, ModuleType):
            value.__class__ = _CallableModule
        super().__setattr__(name, value)


def __dir__() -> list[str]:
    return list(__all__)


def __getattr__(name: str) -> Any:
    if name in ("train", "nn", "zoo"):
        return importlib.import_module(f"p2pnn.{name}")
    raise AttributeError(f"module 'p2pnn' has no attribute {name!r}")


sys.modules[__name__].__class__ = _Package
