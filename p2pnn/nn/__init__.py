"""What a person imports to write a model.

    from p2pnn import nn

    def net(classes: int = 10) -> nn.Model:
        image = nn.Input("image", (1, 28, 28))             # the batch is implied
        label = nn.Input("label", (), dtype="int64")
        h = nn.relu(nn.Linear(128)(nn.flatten(image)))
        logits = nn.Linear(classes, name="head")(h)
        return nn.Model(outputs={"probability": nn.softmax(logits)},
                        loss=nn.cross_entropy(logits, label),
                        metrics={"accuracy": nn.accuracy(logits, label)})

Calling a layer or a function computes nothing: it notes an op and returns a `Value` that knows its shape, so a model that
does not fit together is refused on the line that is wrong. `Model` collects the ops that its outputs, loss and metrics
need into a `p2pnn.model.graph.Graph`, which is what trains.

A layer object called twice shares its parameters. A layer without a name is called `conv2d_1`, `conv2d_2`, … within its
`scope`; a name given twice is refused. Images are (batch, channels, height, width), sequences (batch, positions, features).
"""

from p2pnn.model.graph import BATCH
from p2pnn.nn.functions import (
    argmax,
    attention,
    clip,
    concat,
    erf,
    exp,
    flatten,
    gelu,
    global_average_pool,
    identity,
    layer_norm,
    log,
    matmul,
    reduce_max,
    reduce_mean,
    reduce_sum,
    relu,
    reshape,
    sigmoid,
    softmax,
    split,
    sqrt,
    squeeze,
    tanh,
    transpose,
    unsqueeze,
    where,
)
from p2pnn.nn.layers import AveragePool2d, BatchNorm, Conv2d, Dropout, Layer, Linear, MaxPool2d
from p2pnn.nn.losses import (
    accuracy,
    cross_entropy,
    mean_absolute_error,
    mean_squared_error,
    perplexity,
    rmse,
    top_k_accuracy,
)
from p2pnn.nn.model import Model
from p2pnn.nn.sequence import Embedding, LayerNorm, MultiHeadAttention
from p2pnn.nn.value import Input, Metric, Value, parameter, scope

__all__ = [
    "BATCH",
    "AveragePool2d",
    "BatchNorm",
    "Conv2d",
    "Dropout",
    "Embedding",
    "Input",
    "Layer",
    "LayerNorm",
    "Linear",
    "MaxPool2d",
    "Metric",
    "Model",
    "MultiHeadAttention",
    "Value",
    "accuracy",
    "argmax",
    "attention",
    "clip",
    "concat",
    "cross_entropy",
    "erf",
    "exp",
    "flatten",
    "gelu",
    "global_average_pool",
    "identity",
    "layer_norm",
    "log",
    "matmul",
    "mean_absolute_error",
    "mean_squared_error",
    "parameter",
    "perplexity",
    "reduce_max",
    "reduce_mean",
    "reduce_sum",
    "relu",
    "reshape",
    "rmse",
    "scope",
    "sigmoid",
    "softmax",
    "split",
    "sqrt",
    "squeeze",
    "tanh",
    "top_k_accuracy",
    "transpose",
    "unsqueeze",
    "where",
]
