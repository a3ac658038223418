"""Small graphs for the parameter server's tests."""

from __future__ import annotations

from p2pnn import nn
from p2pnn.model.graph import Graph


def mlp(*widths: int, inputs: int = 8, classes: int = 5) -> Graph:
    """A dense network; parameters fc0/weight, fc0/bias, …, in that order."""
    h = nn.Input("x", (inputs,))
    label = nn.Input("y", (), dtype="int64")
    for i, width in enumerate(widths):
        h = nn.relu(nn.Linear(width, name=f"fc{i}")(h))
    logits = nn.Linear(classes, name="head")(h)
    return nn.Model(outputs={"probability": nn.softmax(logits)}, loss=nn.cross_entropy(logits, label)).graph
