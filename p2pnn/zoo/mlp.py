"""A multilayer perceptron: flatten, dense layers with relu and dropout, a dense layer to the classes."""

from __future__ import annotations

from collections.abc import Sequence

from p2pnn import nn


def build(shape: tuple[int, ...], classes: int, hidden: Sequence[int] = (128, 128), dropout: float = 0.1) -> nn.Model:
    """shape: of a row of `image`, any. hidden: widths. dropout: after each hidden layer; 0 leaves it out."""
    image = nn.Input("image", shape)
    label = nn.Input("label", (), dtype="int64")
    h = nn.flatten(image) if len(shape) != 1 else image
    for number, width in enumerate(hidden, 1):
        h = nn.relu(nn.Linear(width, name=f"hidden{number}")(h))
        if dropout:
            h = nn.Dropout(dropout, name=f"dropout{number}")(h)
    logits = nn.Linear(classes, name="head")(h)
    return nn.Model(
        outputs={"probability": nn.softmax(logits)},
        loss=nn.cross_entropy(logits, label),
        metrics={"accuracy": nn.accuracy(logits, label)},
        name="mlp",
    )
