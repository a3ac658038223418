"""Slots of workers."""

from __future__ import annotations

import numpy as np

from p2pnn.ps.compression import Bytes
from p2pnn.ps.messages import Push, Worker
from p2pnn.ps.staging import Staging
from tests.ps.network import workers_named

A, B, C, D = workers_named(4)


def push(worker: Worker, sequence: int) -> Push:
    return Push(worker, 0, sequence, 0, 8, 0)


def made(*workers: Worker) -> tuple[Staging, list[tuple[int, int]]]:
    asked: list[tuple[int, int]] = []

    def slot(worker: int, number: int) -> Bytes:
        asked.append((worker, number))
        return np.zeros(12, np.uint8)

    return Staging([8, 4], workers, slot), asked


def test_a_push_has_the_slot_of_its_worker_and_number() -> None:
    staging, asked = made(A, B)
    places = [staging.open(push(worker, sequence)).place for worker, sequence in ((A, 1), (A, 2), (B, 1), (A, 3))]
    assert asked == [(0, 1), (0, 0), (1, 1)]
    assert places[3] is places[0]
    staged = staging.open(push(B, 2))
    assert staged.missing == {0, 1}
    staging.part(staged.place, 1)[:] = 7
    assert staged.place.tolist() == [0] * 8 + [7] * 4


def test_who_stays_keeps_its_slots_and_who_comes_takes_the_first_free() -> None:
    staging, asked = made(A, B, C)
    staging.set_workers([C, D, A])
    for worker in (A, C, D):
        staging.open(push(worker, 2))
    assert asked == [(0, 0), (2, 0), (1, 0)]
