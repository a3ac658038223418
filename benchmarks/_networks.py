"""The zoo's networks in torch, as torch's own documentation would write them."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def mlp(hidden: list[int], inputs: int = 784, classes: int = 10) -> torch.nn.Sequential:
    layers: list[torch.nn.Module] = []
    for width in hidden:
        layers += [torch.nn.Linear(inputs, width), torch.nn.ReLU()]
        inputs = width
    return torch.nn.Sequential(*layers, torch.nn.Linear(inputs, classes))


def lenet5() -> torch.nn.Sequential:
    """As p2pnn.zoo.lenet5."""
    t = torch.nn
    return t.Sequential(
        *(t.Conv2d(1, 16, 5, padding=2, bias=False), t.BatchNorm2d(16), t.ReLU(), t.MaxPool2d(2)),
        *(t.Conv2d(16, 32, 5, bias=False), t.BatchNorm2d(32), t.ReLU(), t.MaxPool2d(2), t.Flatten()),
        *(t.Linear(800, 120), t.ReLU(), t.Linear(120, 84), t.ReLU(), t.Linear(84, 10)),
    )


class Block(torch.nn.Module):
    """As p2pnn.zoo.resnet8's."""

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        t = torch.nn
        self.conv1, self.bn1 = t.Conv2d(inputs, channels, 3, stride, 1, bias=False), t.BatchNorm2d(channels)
        self.conv2, self.bn2 = t.Conv2d(channels, channels, 3, 1, 1, bias=False), t.BatchNorm2d(channels)
        self.skip = (
            t.Sequential(t.Conv2d(inputs, channels, 1, stride, bias=False), t.BatchNorm2d(channels))
            if (inputs, stride) != (channels, 1)
            else t.Identity()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.skip(x) + self.bn2(self.conv2(h)))


def resnet8(width: int = 16) -> torch.nn.Sequential:
    t = torch.nn
    first = t.Sequential(t.Conv2d(1, width, 3, padding=1, bias=False), t.BatchNorm2d(width), t.ReLU())
    blocks = [Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 4 * width, 2)]
    return t.Sequential(first, *blocks, t.AdaptiveAvgPool2d(1), t.Flatten(), t.Linear(4 * width, 10))


class CharGPT(torch.nn.Module):
    """As p2pnn.zoo.char_gpt."""

    def __init__(self, context: int, classes: int, layers: int = 4, heads: int = 4, width: int = 128) -> None:
        super().__init__()
        t = torch.nn
        self.token, self.position = t.Embedding(classes, width), t.Parameter(torch.empty(context, width))
        self.blocks = t.Sequential(*(TransformerBlock(width, heads) for _ in range(layers)))
        self.norm, self.head = t.LayerNorm(width), t.Linear(width, classes, bias=False)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                t.init.zeros_(parameter)
            elif "norm" not in name:
                branch = name.endswith(("projection.weight", "narrow.weight"))
                t.init.normal_(parameter, std=0.02 / (2 * layers) ** 0.5 if branch else 0.02)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.norm(self.blocks(self.token(tokens) + self.position)))
        return scores


class Attention(torch.nn.Module):
    """Causal; queries, keys and values come side by side, as one projection makes them."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (h.view(*h.shape[:2], self.heads, -1).transpose(1, 2) for h in x.chunk(3, dim=2))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


class TransformerBlock(torch.nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        t = torch.nn
        self.attention = Attention(heads)
        self.norm1, self.norm2 = t.LayerNorm(width), t.LayerNorm(width)
        self.qkv, self.projection = t.Linear(width, 3 * width), t.Linear(width, width)
        self.widen, self.narrow = t.Linear(width, 4 * width), t.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.projection(self.attention(self.qkv(self.norm1(x))))
        return x + self.narrow(F.gelu(self.widen(self.norm2(x)), approximate="tanh"))
