"""LeNet-5 (LeCun et al. 1998) as it is built today: relu and max pooling in place of tanh, averages and sparse tables.

Its widths are 16 and 32 channels instead of 6 and 16, which is worth half a percent on MNIST and still fits a laptop.
"""

from __future__ import annotations

from p2pnn import nn
from p2pnn.errors import ModelError


def build(shape: tuple[int, ...], classes: int) -> nn.Model:
    """shape: (channels, height, width) of `image`, at least 12 × 12."""
    if len(shape) != 3 or min(shape[1:]) < 12:
        raise ModelError(f"lenet5 takes images (channels, height, width) from 12 × 12, but the data has shape {shape}")
    image = nn.Input("image", shape)
    label = nn.Input("label", (), dtype="int64")
    h = nn.relu(nn.Conv2d(16, 5, padding=2, name="conv1")(image), name="relu1")
    h = nn.MaxPool2d(2, name="pool1")(h)
    h = nn.relu(nn.Conv2d(32, 5, name="conv2")(h), name="relu2")
    h = nn.MaxPool2d(2, name="pool2")(h)
    h = nn.relu(nn.Linear(120, name="dense1")(nn.flatten(h)), name="relu3")
    h = nn.relu(nn.Linear(84, name="dense2")(h), name="relu4")
    logits = nn.Linear(classes, name="head")(h)
    return nn.Model(
        outputs={"probability": nn.softmax(logits)},
        loss=nn.cross_entropy(logits, label),
        metrics={"accuracy": nn.accuracy(logits, label)},
        name="lenet5",
    )
