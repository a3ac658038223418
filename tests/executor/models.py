"""Small networks that together use what makes bits hard: dropout, batch normalization, shared parameters, sums of three."""

from __future__ import annotations

from p2pnn import nn
from p2pnn.model.graph import Graph, Scaling, Shape
from p2pnn.zoo import mlp

IMAGE: Shape = (2, 8, 8)
CLASSES = 5


def inputs() -> tuple[nn.Value, nn.Value]:
    return nn.Input("image", IMAGE), nn.Input("label", (), dtype="int64")


def dense() -> Graph:
    return mlp.build(IMAGE, CLASSES, hidden=(24, 16), dropout=0.2).graph


def convolutional() -> Graph:
    """The shape of LeNet: convolution, normalization, pooling, dense layers."""
    image, label = inputs()
    h = nn.MaxPool2d(2)(nn.relu(nn.BatchNorm()(nn.Conv2d(4, 3, padding=1, bias=False)(image))))
    h = nn.AveragePool2d(2)(nn.tanh(nn.Conv2d(6, 3, padding=1)(h)))
    logits = nn.Linear(CLASSES)(nn.relu(nn.Linear(12)(nn.flatten(h))))
    return nn.Model({"p": nn.softmax(logits)}, nn.cross_entropy(logits, label), {"a": nn.accuracy(logits, label)}).graph


def residual() -> Graph:
    """Two residual blocks, one with a projection."""
    image, label = inputs()
    h = nn.relu(nn.BatchNorm()(nn.Conv2d(4, 3, padding=1, bias=False)(image)))
    for channels, stride in ((4, 1), (6, 2)):
        skip = h if channels == 4 else nn.Conv2d(channels, 1, stride=stride, bias=False)(h)
        body = nn.relu(nn.BatchNorm()(nn.Conv2d(channels, 3, stride=stride, padding=1, bias=False)(h)))
        h = nn.relu(skip + nn.BatchNorm()(nn.Conv2d(channels, 3, padding=1, bias=False)(body)))
    logits = nn.Linear(CLASSES)(nn.global_average_pool(h))
    return nn.Model({"p": nn.softmax(logits)}, nn.cross_entropy(logits, label), {"a": nn.accuracy(logits, label)}).graph


def diamond() -> Graph:
    """A value with three consumers, a convolution used twice, dropout, two losses, an output that training does not need."""
    image, label = inputs()
    target = nn.Input("target", (3,))
    h = nn.BatchNorm(name="bn")(nn.Conv2d(4, 3, padding=1, name="first")(image))
    shared = nn.Conv2d(4, 3, padding=1, name="shared")
    left, middle, right = shared(nn.relu(h)), shared(nn.sigmoid(h)), nn.Dropout(0.3, name="drop")(nn.tanh(h))
    joined = nn.concat([left + middle, right], axis=1)
    pooled = nn.global_average_pool(joined)
    logits = nn.Linear(CLASSES, name="classes")(nn.Dropout(0.2, name="drop2")(pooled))
    guess = nn.Linear(3, name="guess")(pooled)
    return nn.Model(
        outputs={"probability": nn.softmax(logits), "best": nn.argmax(logits), "guess": guess},
        loss=[nn.cross_entropy(logits, label), nn.mean_squared_error(guess, target)],
        metrics={"accuracy": nn.accuracy(logits, label), "rmse": nn.rmse(guess, target)},
    ).graph


def attentive() -> Graph:
    """A transformer's block on the rows of pixels: a Split, whose parts travel apart, attention, constants, normalized lines."""
    image, label = inputs()
    h = nn.Linear(12, name="first")(nn.reshape(image, (0, 16, 8)) / 128.0) + nn.parameter(
        "position", (16, 12), scale=0.1
    )
    h = h + nn.MultiHeadAttention(2, causal=True, name="attention")(nn.LayerNorm(name="norm1")(h))
    h = h + nn.Linear(12, name="narrow")(nn.gelu(nn.Linear(24, name="widen")(nn.LayerNorm(name="norm2")(h))))
    logits = nn.Linear(CLASSES, name="head")(h[:, -1])
    return nn.Model({"p": nn.softmax(logits)}, nn.cross_entropy(logits, label), {"a": nn.accuracy(logits, label)}).graph


def scaled(graph: Graph) -> Graph:
    """With the scaling of pixels kept in the graph."""
    import msgspec

    return msgspec.structs.replace(graph, scaling={"image": Scaling(shift=(128.0, 100.0), scale=(1 / 64, 1 / 80))})
