"""What an ordering means."""

import numpy as np
import torch
from torch import Tensor

from plait.graph import Ordering


def check(found: Ordering, rows: Tensor, num_rows: int, others: list[tuple[Tensor, int]], with_edge_id: bool) -> None:
    """The meaning of an ordering, in NumPy."""
    expected = np.argsort(rows.numpy(), kind="stable")
    counts = np.bincount(rows.numpy(), minlength=num_rows)
    assert found.indptr is not None
    assert found.indptr.dtype == torch.int64
    np.testing.assert_array_equal(found.indptr.numpy(), np.concatenate([[0], np.cumsum(counts)]))
    assert (found.num_edges, found.num_rows) == (len(rows), num_rows)
    assert found.is_identity == bool((np.diff(rows.numpy()) >= 0).all())
    if with_edge_id and not found.is_identity:
        assert found.edge_id is not None
        assert found.edge_id.dtype == torch.int32
        np.testing.assert_array_equal(found.edge_id.numpy(), expected)
    else:
        assert found.edge_id is None
    dtype = torch.int32 if all(size < 2**31 for _, size in others) else torch.int64
    for index, (other, _) in zip(found.indices, others, strict=True):
        assert index.dtype == dtype
        assert index.is_contiguous()
        np.testing.assert_array_equal(index.numpy(), other.numpy()[expected])
