"""A residual network of one's own.

Look at it:      python examples/own_model.py
Train it:        p2pnn train examples/own_model.py:net --data mnist --epochs 3
With arguments:  in a job file, `p2pnn train job.toml`:

    format = 1
    [model]
    source = "examples/own_model.py:net"
    arguments = { width = 32, shape = [1, 8, 8] }
    [data]
    train = "digits.npz"
    inputs = { image = "x", label = "y" }        # input of the model = column of the data

p2pnn calls `net` in the process of the command that you type; only the graph that it returns travels to other machines.
"""

from collections.abc import Sequence

from p2pnn import nn


def block(x: nn.Value, channels: int, stride: int = 1) -> nn.Value:
    """Two convolutions beside a shortcut."""
    h = nn.Conv2d(channels, 3, stride=stride, padding=1, bias=False, name="conv1")(x)
    h = nn.relu(nn.BatchNorm(name="bn1")(h))
    h = nn.Conv2d(channels, 3, padding=1, bias=False, name="conv2")(h)
    h = nn.BatchNorm(name="bn2")(h)
    if x.shape != h.shape:  # static: (nn.BATCH, C, H, W)
        x = nn.Conv2d(channels, 1, stride=stride, bias=False, name="skip")(x)
    return nn.relu(x + h)


def net(classes: int = 10, width: int = 16, shape: Sequence[int] = (1, 28, 28)) -> nn.Model:
    """Three residual blocks. shape: (channels, height, width) of a picture."""
    image = nn.Input("image", shape)  # the batch is implied
    label = nn.Input("label", (), dtype="int64")
    h = image
    for i, stride in enumerate((1, 2, 2)):
        with nn.scope(f"block{i}"):  # "block1/conv1/weight"
            h = block(h, width * 2**i, stride)
    logits = nn.Linear(classes, name="head")(nn.global_average_pool(h))
    return nn.Model(
        outputs={"probability": nn.softmax(logits)},
        loss=nn.cross_entropy(logits, label),
        metrics={"accuracy": nn.accuracy(logits, label)},
    )


if __name__ == "__main__":
    print(net().summary(batch=64))  # names, shapes, parameters, FLOPs
