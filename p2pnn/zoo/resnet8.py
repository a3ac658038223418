"""ResNet-8 (He et al. 2016, §4.2 with n = 1): a convolution, three residual blocks, a global mean, a dense layer."""

from __future__ import annotations

from p2pnn import nn
from p2pnn.errors import ModelError


def build(shape: tuple[int, ...], classes: int, width: int = 16) -> nn.Model:
    """shape: (channels, height, width) of `image`, from 8 × 8. width: channels of the first block; doubled twice."""
    if len(shape) != 3 or min(shape[1:]) < 8:
        raise ModelError(f"resnet8 takes images (channels, height, width) from 8 × 8, but the data has shape {shape}")
    image = nn.Input("image", shape)
    label = nn.Input("label", (), dtype="int64")
    h = nn.Conv2d(width, 3, padding=1, bias=False, name="conv")(image)
    h = nn.relu(nn.BatchNorm(name="bn")(h))
    for number, stride in enumerate((1, 2, 2)):
        with nn.scope(f"block{number}"):
            h = block(h, width * 2**number, stride)
    logits = nn.Linear(classes, name="head")(nn.global_average_pool(h))
    return nn.Model(
        outputs={"probability": nn.softmax(logits)},
        loss=nn.cross_entropy(logits, label),
        metrics={"accuracy": nn.accuracy(logits, label)},
        name="resnet8",
    )


def block(x: nn.Value, channels: int, stride: int) -> nn.Value:
    """Two 3 × 3 convolutions beside a shortcut, which is a 1 × 1 convolution where the shape changes."""
    h = nn.Conv2d(channels, 3, stride=stride, padding=1, bias=False, name="conv1")(x)
    h = nn.relu(nn.BatchNorm(name="bn1")(h), name="relu1")
    h = nn.Conv2d(channels, 3, padding=1, bias=False, name="conv2")(h)
    h = nn.BatchNorm(name="bn2")(h)
    if x.shape != h.shape:
        x = nn.Conv2d(channels, 1, stride=stride, bias=False, name="skip")(x)
        x = nn.BatchNorm(name="skip_bn")(x)
    return nn.relu(x + h, name="relu2")
