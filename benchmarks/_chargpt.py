"""torch's side of `chargpt`: the same network by torch's own modules, trained on rows that were written for it.

    python -m benchmarks._chargpt        obeys benchmarks._worker's questions

Files in the folder: train-x.npy, train-y.npy, validation-x.npy, validation-y.npy (rows of tokens), order.npy (int64[steps,
batch], row numbers), rates.npy (one per step), p0.npy … (first parameters, in the order of `names`).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks._networks import CharGPT
from benchmarks._worker import serve


def called(name: str) -> str:
    """p2pnn's name of a parameter → the module's."""
    return name.replace("attention/", "").replace("block", "blocks.").replace("/", ".")


class Training:
    def __init__(self, asked: dict[str, Any]) -> None:
        folder = Path(asked["folder"])
        self._rows = {
            part: [torch.from_numpy(np.load(folder / f"{part}-{c}.npy").astype(np.int64)) for c in "xy"]
            for part in ("train", "validation")
        }
        self._order = torch.from_numpy(np.load(folder / "order.npy"))
        self._rates = np.load(folder / "rates.npy").tolist()
        self._each = asked["steps_per_epoch"]
        first = {called(name): np.load(folder / f"p{n}.npy") for n, name in enumerate(asked["names"])}
        classes, width = first["token.weight"].shape
        self._net = CharGPT(len(first["position"]), classes, asked["layers"], asked["heads"], width)
        self._net.load_state_dict({name: torch.from_numpy(array) for name, array in first.items()})
        decayed, settings = {called(name) for name in asked["decayed"]}, asked["optimizer"]
        groups = [[p for name, p in self._net.named_parameters() if (name in decayed) == wanted] for wanted in (1, 0)]
        self._clip = settings["clip_norm"]
        self._optimizer = torch.optim.AdamW(
            [
                {"params": groups[0], "weight_decay": settings["weight_decay"]},
                {"params": groups[1], "weight_decay": 0.0},
            ],
            lr=settings["rate"],
            betas=(settings["beta1"], settings["beta2"]),
            eps=settings["epsilon"],
        )

    def run(self, count: int) -> dict[str, Any]:
        """Train so many steps, from the first; the validation loss after each epoch."""
        losses = []
        for step in range(count):
            for group in self._optimizer.param_groups:
                group["lr"] = self._rates[step]
            x, y = (column[self._order[step]] for column in self._rows["train"])
            self._optimizer.zero_grad()
            F.cross_entropy(self._net(x).flatten(0, 1), y.flatten()).backward()
            if self._clip:
                torch.nn.utils.clip_grad_norm_(self._net.parameters(), self._clip)
            self._optimizer.step()
            if (step + 1) % self._each == 0:
                losses.append(self._validation())
                print(f"  torch: step {step + 1}, validation loss {losses[-1]:.4f}", file=sys.stderr)
        return {"losses": losses}

    def close(self) -> None:
        pass

    def _validation(self) -> float:
        x, y = self._rows["validation"]
        total = 0.0
        with torch.no_grad():
            for rows, following in zip(x.split(64), y.split(64), strict=True):
                total += float(F.cross_entropy(self._net(rows).flatten(0, 1), following.flatten(), reduction="sum"))
        return total / int(y.numel())


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve(Training)
    sys.exit(0)
