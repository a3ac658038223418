"""LeNet-5 (LeCun et al. 1998) as it is built today: batch normalization, relu and max pooling in place of tanh and averages,
and 16 and 32 channels instead of 6 and 16 sparsely connected ones.

On MNIST (3 epochs, Adam at 1e-3 with a cosine schedule, batches of 128) the normalization is what counts: 99.1 % on the test
images with it, 98.5 % without; twice the channels gain less and cost twice the time.
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
    h = nn.Conv2d(16, 5, padding=2, bias=False, name="conv1")(image)
    h = nn.relu(nn.BatchNorm(name="bn1")(h), name="relu1")
    h = nn.MaxPool2d(2, name="pool1")(h)
    h = nn.Conv2d(32, 5, bias=False, name="conv2")(h)
    h = nn.relu(nn.BatchNorm(name="bn2")(h), name="relu2")
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
