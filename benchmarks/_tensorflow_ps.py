"""TensorFlow's side of `./run bench ps`: ParameterServerStrategy with a loop of its own, as TensorFlow's tutorial has it.

    python -m benchmarks._tensorflow_ps TASK INDEX ADDRESSES     TASK: ps, worker or chief; ADDRESSES: JSON, task → host:port

The chief hands steps to whichever worker is free; a step reads the variables from the server, and assigns to them there. One
thread per operation. Rows are the same ones, in an order of each worker's own.
"""

from __future__ import annotations

import json
import os
import sys
from collections import deque
from pathlib import Path
from typing import Any

os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "2", "AUTOGRAPH_VERBOSITY": "0"}

import numpy as np
import tensorflow as tf

from benchmarks._notes import Notes
from benchmarks._worker import serve

AHEAD = 8
"""Steps that are handed out before the oldest one's loss is waited for."""

SHUFFLED = 64
"""Batches among which the next one is chosen."""


class Serving:
    """Of the processes that only serve: they have nothing to do in a round."""

    def __init__(self, asked: dict[str, Any]) -> None:
        pass

    def run(self, count: int) -> dict[str, Any]:
        return {"losses": []}

    def close(self) -> None:
        pass


class Chief:
    def __init__(self, asked: dict[str, Any], strategy: Any, coordinator: Any) -> None:
        folder, rate = Path(asked["folder"]), asked["rate"]
        order = np.load(folder / asked["order"], mmap_mode="r")
        batch = order.shape[1]
        with strategy.scope():
            parameters = [tf.Variable(np.load(folder / f"p{n}.npy")) for n in range(asked["parameters"])]
        self.coordinator = coordinator
        columns = {name: layout(folder / f"{name}.npy") for name in ("x", "y")}
        self.rows = iter(coordinator.create_per_worker_dataset(lambda: dataset(columns, batch)))

        def step(rows: Any) -> Any:
            x, y = next(rows)
            with tf.GradientTape() as tape:
                for weight, bias in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
                    x = tf.nn.relu(tf.linalg.matmul(x, weight, transpose_b=True) + bias)
                scores = tf.linalg.matmul(x, parameters[-2], transpose_b=True) + parameters[-1]
                loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, scores))
            for parameter, gradient in zip(parameters, tape.gradient(loss, parameters), strict=True):
                parameter.assign_sub(rate * gradient)
            return loss

        self.do = tf.function(lambda rows: strategy.run(step, args=(rows,)))

    def run(self, count: int) -> dict[str, Any]:
        notes = Notes()
        waiting: deque[Any] = deque()
        done = 0
        for number in range(count):
            waiting.append(self.coordinator.schedule(self.do, args=(self.rows,)))
            while len(waiting) > (AHEAD if number + 1 < count else 0):
                done += 1
                notes.add(done, float(waiting.popleft().fetch()), last=done == count)
        return {"losses": notes.rows}

    def close(self) -> None:
        pass


def dataset(columns: dict[str, tuple[str, int, int]], batch: int) -> Any:
    """Batches (float32[batch, width], int64[batch]) for ever, which a worker reads from files. columns: `layout` of x and y."""

    def column(name: str, kind: Any) -> Any:
        path, wide, header = columns[name]
        records = tf.data.FixedLengthRecordDataset(path, wide, header_bytes=header).batch(batch, drop_remainder=True)
        return records.map(lambda rows: tf.io.decode_raw(rows, kind))

    rows = tf.data.Dataset.zip((column("x", tf.float32), column("y", tf.int64).map(lambda y: y[:, 0])))
    return rows.shuffle(SHUFFLED).repeat().prefetch(1)


def layout(path: Path) -> tuple[str, int, int]:
    """Of an npy file: its name, the bytes of a row, and those before the first one."""
    array = np.load(path, mmap_mode="r")
    return str(path), array.nbytes // len(array), path.stat().st_size - array.nbytes


def main() -> None:
    task, index, addresses = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
    cluster = tf.train.ClusterSpec(addresses)
    workers = len(addresses["worker"])
    if task != "chief":
        threads = tf.compat.v1.ConfigProto(inter_op_parallelism_threads=workers + 1, intra_op_parallelism_threads=1)
        server = tf.distribute.Server(cluster, job_name=task, task_index=index, protocol="grpc", config=threads)
        serve(Serving)
        del server
        os._exit(0)  # a server has no other end
    tf.config.threading.set_intra_op_parallelism_threads(1)
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        cluster, rpc_layer="grpc", task_type="chief", task_id=0
    )
    strategy = tf.distribute.ParameterServerStrategy(resolver)
    coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
    serve(lambda asked: Chief(asked, strategy, coordinator))
    os._exit(0)


if __name__ == "__main__":
    main()
