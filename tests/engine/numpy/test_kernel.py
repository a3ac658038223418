from __future__ import annotations

import numpy as np

from p2pnn.engine.numpy.kernel import ALIGNMENT_BYTES, BLOCK_BYTES, Workspace, blocks

FLOAT = np.dtype(np.float32)


def test_scratch_of_one_kernel_is_apart_and_of_two_shared() -> None:
    workspace = Workspace()
    workspace.next_kernel()
    a, b = workspace.scratch((5, 7), FLOAT), workspace.scratch((3,), np.dtype(np.bool_))
    workspace.next_kernel()
    c = workspace.scratch((11,), FLOAT)
    own = workspace.own((4,), FLOAT)
    taken = workspace.allocate()
    assert not np.shares_memory(a.array, b.array)
    assert np.shares_memory(a.array, c.array)
    assert (a.array.shape, b.array.dtype, c.array.shape) == ((5, 7), np.bool_, (11,))
    assert all(slot.array.ctypes.data % ALIGNMENT_BYTES == 0 for slot in (a, b, c))
    assert taken == 192 + 64 + own.nbytes


def test_blocks_are_whole_images_or_rows_of_one() -> None:
    assert blocks(32, 10, BLOCK_BYTES // 40) == (4, 10)
    assert blocks(2, 10, 8) == (2, 10)
    assert blocks(32, 100, BLOCK_BYTES // 25) == (1, 25)
    assert blocks(32, 100, 2 * BLOCK_BYTES) == (1, 1)
