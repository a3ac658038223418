"""Is a graph a model of text, and where do tokens go in and scores come out?

A graph goes on with text where it reads one input of whole numbers, (batch, positions), has an output of one number per
position and class, (batch, positions, classes), and its classes are single characters: the vocabulary. That position p
depends on no later token is the model's affair (`nn.Attention(causal=True)`); then a text shorter than a row may be filled
up with anything behind its end.
"""

from __future__ import annotations

from dataclasses import dataclass

from p2pnn.errors import ModelError
from p2pnn.model.flow import Flow
from p2pnn.model.graph import Graph


@dataclass(frozen=True, slots=True)
class Ports:
    """input: takes tokens, int64 (batch, context). output: the value of the scores, float32 (batch, context, classes).

    key: what the output is called. probabilities: the scores are those, not their logarithms.
    """

    input: str
    output: str
    key: str
    context: int
    classes: int
    probabilities: bool


def ports(graph: Graph) -> Ports:
    """Where text goes in and out. Raises ModelError for a graph that does not go on with text, saying what it lacks."""
    lacks = f"the model {graph.name} does not go on with text: "
    if not graph.classes or any(len(character) != 1 for character in graph.classes):
        raise ModelError(lacks + "its classes are not characters, so it was not trained on text")
    flow = Flow(graph)
    read = {name for index in flow.inference for name in graph.ops[index].inputs}
    inputs = [value for value in graph.inputs if value.name in read]
    if len(inputs) != 1 or inputs[0].dtype != "int64" or len(inputs[0].shape) != 2:
        raise ModelError(lacks + "it must read one input of whole numbers, a row of tokens")
    context, classes = inputs[0].shape[1], len(graph.classes)
    described = {value.name: value for value in graph.values}
    for key, name in graph.outputs.items():
        value = described.get(name)
        if value is not None and value.dtype == "float32" and value.shape[1:] == (context, classes):
            softmax = any(op.kind == "Softmax" and name in op.outputs for op in graph.ops)
            return Ports(inputs[0].name, name, key, context, classes, softmax)
    raise ModelError(lacks + f"no output has one score per position and character, ({context}, {classes})")
