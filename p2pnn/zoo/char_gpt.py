"""A small GPT that learns a text by its characters: a decoder-only transformer (Radford et al. 2019, §2.3).

Tokens and their positions are looked up in two learnt tables and added; then blocks of attention, in which a position sees
itself and those before it, and of a multilayer perceptron four times as wide, each beside a shortcut and behind a layer
normalization of its own; then scores for the character that comes next, at every position.

Weights start as GPT-2's: normal with a standard deviation of 0.02, biases 0, and what is added to a shortcut smaller by
√(2 · layers), because so many summands come together. Unlike GPT-2 the head has a table of its own, so that the first and
the last layer may lie on different nodes.

On tinyshakespeare (1.1 MB) the defaults, 0.8 million parameters, get to a validation loss of 1.69 in five epochs of 245 steps:
AdamW at 2e-3 with 100 steps of warm-up and a weight decay of 0.1, clipping at 1, batches of 32, a context of 128.
"""

from __future__ import annotations

import math
from typing import Final

from p2pnn import nn
from p2pnn.errors import ModelError

SCALE: Final = 0.02
"""Standard deviation of the first weights."""

LAYERS_MAX: Final = 1000
"""GPT-3 has 96."""


def build(
    shape: tuple[int, ...], classes: int, layers: int = 4, heads: int = 4, width: int = 128, dropout: float = 0.0
) -> nn.Model:
    """shape: (context,), the characters of a row. classes: how many characters there are.

    layers: blocks. heads: of each attention; they divide width. dropout: behind the tables and in each shortcut's branch.
    """
    if len(shape) != 1:
        raise ModelError(
            f"char-gpt takes a text, rows of (characters,), but the data has shape {shape}; name one with --data FILE.txt"
        )
    if not 1 <= layers <= LAYERS_MAX:
        raise ModelError(f"char-gpt: layers = {layers}; it has 1 to {LAYERS_MAX}")
    tokens = nn.Input("tokens", shape, dtype="int64")
    following = nn.Input("next", shape, dtype="int64")
    position = nn.parameter("position", (shape[0], width), std=SCALE)
    h = _dropped(nn.Embedding(classes, width, scale=SCALE, name="token")(tokens) + position, dropout)
    branch = SCALE / math.sqrt(2 * layers)
    for number in range(layers):
        with nn.scope(f"block{number}"):
            h = block(h, heads, dropout, branch)
    logits = nn.Linear(classes, bias=False, scale=SCALE, name="head")(nn.LayerNorm(name="norm")(h))
    return nn.Model(
        outputs={"probability": nn.softmax(logits)},
        loss=nn.cross_entropy(logits, following),
        metrics={"perplexity": nn.perplexity(logits, following)},
        name="char-gpt",
    )


def block(x: nn.Value, heads: int, dropout: float, scale: float) -> nn.Value:
    """(batch, positions, width), same shape out. scale: of the weights that end a branch."""
    width = x.shape[2]
    attention = nn.MultiHeadAttention(heads, causal=True, scale=SCALE, projection_scale=scale, name="attention")
    x = x + _dropped(attention(nn.LayerNorm(name="norm1")(x)), dropout)
    h = nn.Linear(4 * width, scale=SCALE, name="widen")(nn.LayerNorm(name="norm2")(x))
    h = nn.Linear(width, scale=scale, name="narrow")(nn.gelu(h, approximate="tanh"))
    return x + _dropped(h, dropout)


def _dropped(x: nn.Value, dropout: float) -> nn.Value:
    return nn.Dropout(dropout)(x) if dropout else x
