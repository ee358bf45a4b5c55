"""Who reads each cluster, and what attention does with it."""

import pytest
import torch
from native_op import DTYPES, native, needs_native, requiring_grad
from op_inputs import attention_inputs

from aff_seg import ops
from aff_seg.ops import reference

# (B, N, R, count)
SIZES = [(2, 9, 3, 4), (1, 1, 1, 1), (3, 40, 6, 5), (2, 5, 2, 90), (2, 7, 0, 3), (0, 7, 2, 3)]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_lists_every_place_once(sizes):
    batch, tokens, near, count = sizes
    clusters = torch.randint(0, count, (batch, tokens, near)).int()
    start, place = ops.cluster_readers(clusters, count)
    assert (start.dtype, place.dtype) == (torch.int64, torch.int32)
    assert start.shape == (batch * count + 1,) and place.shape == (batch * tokens * near,)
    want = [
        [p for p, c in enumerate(lists) if c == cluster]
        for lists in clusters.flatten(1).tolist()
        for cluster in range(count)
    ]
    bounds = start.tolist()
    assert [place[a:b].tolist() for a, b in zip(bounds, bounds[1:], strict=False)] == want
    other = reference.cluster_readers(clusters, count)
    assert torch.equal(other[0], start) and torch.equal(other[1], place)


@needs_native
def test_registration():
    clusters = torch.randint(0, 5, (2, 9, 3)).int()
    torch.library.opcheck(torch.ops.aff_seg.cluster_readers.default, (clusters, 5))


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attention_is_the_same_with_them(dtype):
    leaves, given = attention_inputs(dtype)
    readers = ops.cluster_readers(given["clusters"], 7)
    results = []
    for extra in ({}, {"readers": readers}):
        own = requiring_grad(leaves)
        out = native("cluster_attention", {**given, **extra})(**own)
        grads = torch.autograd.grad(out.float().square().sum(), list(own.values()))
        results.append((out, *grads))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@needs_native
@pytest.mark.cpu_kernels
def test_attention_refuses_those_of_other_clusters():
    leaves, given = attention_inputs(torch.float32)
    start, place = ops.cluster_readers(given["clusters"], 7)
    others = [
        (start, place.flip(0)),
        (start, place + 1),
        (start.flip(0), place),
        (start + 1, place),
        ops.cluster_readers(given["clusters"].flip(1), 7),
    ]
    for readers in others:
        out = native("cluster_attention", {**given, "readers": readers})(**requiring_grad(leaves))
        with pytest.raises(ValueError, match="start and place must be the readers of clusters"):
            out.sum().backward()


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("clusters", [torch.tensor([[[5]]]), torch.tensor([[[-1]]])], ids=str)
def test_clusters_out_of_range_are_refused(clusters):
    with pytest.raises(IndexError, match="clusters must lie in 0 to 4, got"):
        ops.cluster_readers(clusters, 5)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"clusters must have shape \(B, N, R\), got \(3, 2\)"):
        ops.cluster_readers(torch.zeros(3, 2).int(), 1)
    with pytest.raises(ValueError, match=r"clusters must be int32 or int64, got torch\.float32"):
        ops.cluster_readers(torch.zeros(1, 3, 2), 1)
