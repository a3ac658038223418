"""Known networks by name. Each file's `build(shape, classes)` returns an `nn.Model` with inputs `image` and `label`.

shape: of one row of `image`, such as (1, 28, 28); classes: how many labels there are. A network of text has `tokens` and
`next` instead: its shape is (characters of a row,), and its classes are the characters.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

from p2pnn import nn
from p2pnn.errors import UsageError
from p2pnn.zoo import char_gpt, lenet5, mlp, resnet8

Build = Callable[[tuple[int, ...], int], nn.Model]

MODELS: dict[str, Build] = {
    "char-gpt": char_gpt.build,
    "lenet5": lenet5.build,
    "mlp": mlp.build,
    "resnet8": resnet8.build,
}


OF_TEXT: tuple[str, ...] = ("char-gpt",)
"""Those that learn a text; all others tell classes apart."""


def names() -> list[str]:
    """All names, sorted."""
    return sorted(MODELS)


def build(name: str, shape: tuple[int, ...], classes: int) -> nn.Model:
    """The network called `name`. Raises UsageError with the nearest name, ModelError where the shape does not fit."""
    if name not in MODELS:
        near = difflib.get_close_matches(name, names(), 1, 0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UsageError(f"there is no network {name!r} in the zoo; {hint}known are {', '.join(names())}")
    return MODELS[name](tuple(shape), classes)
