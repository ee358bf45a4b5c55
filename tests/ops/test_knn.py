"""The native neighbour search against the reference, bit for bit."""

import pytest
import torch
from native_op import assert_same_with_any_threads, needs_native

from aff_seg.ops import reference

pytestmark = needs_native

F32, F64 = torch.float32, torch.float64
MANY = 1 << 18


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(3)


def _assert_same(query, database, k):
    got = torch.ops.aff_seg.knn(query, database, k)
    want = reference.knn(query, database, k)
    assert got[0].dtype == torch.int32 and got[1].dtype == query.dtype
    for ours, theirs in zip(got, want, strict=True):
        assert ours.shape == theirs.shape
        assert torch.equal(ours, theirs)


def _spots(count, rng):
    """Clusters of very different widths, far apart, and points that coincide."""
    centre = torch.rand(6, 2, generator=rng, dtype=F64) * 1e5
    width = 10.0 ** torch.arange(-6, 6, 2, dtype=F64)
    spot = torch.randint(0, 6, (count,), generator=rng)
    points = centre[spot] + torch.randn(count, 2, generator=rng, dtype=F64) * width[spot, None]
    points[::7] = points[0]
    return points


def _points(kind, count, rng):
    """(count, 2) float64."""
    whole = torch.randint(0, 40, (count, 2), generator=rng).to(F64)
    index = torch.arange(count, dtype=F64)
    match kind:
        case "whole":
            return whole
        case "fractions":
            return torch.randn(count, 2, generator=rng, dtype=F64) * 17 - 5
        case "grid":
            return torch.stack((index % 25, index // 25), dim=-1)
        case "scaled":
            return whole * 2520
        case "one spot":
            return torch.full((count, 2), -7.3, dtype=F64)
        case "level line":
            return torch.stack((whole[:, 0] / 3, torch.zeros(count, dtype=F64)), dim=-1)
        case "upright line":
            return torch.stack((torch.ones(count, dtype=F64), whole[:, 0]), dim=-1)
        case "diagonal":
            return index.flip(0)[:, None].expand(-1, 2) * 0.7
        case "outlier":
            return torch.cat((whole[1:] * 1e-3, torch.tensor([[1e6, -1e6]], dtype=F64)))
        case "spot and outlier":
            return torch.cat((torch.tensor([[1e6, 3.0]], dtype=F64), whole[1:] * 0 + 5))
        case "spots":
            return _spots(count, rng)
        case "corner":
            return torch.cat((whole[1:].clamp_max(3), torch.tensor([[40.0, 40.0]], dtype=F64)))
        case "border":
            whole[::2, 0] = 40 * (whole[::2, 0] > 20)
            whole[1::2, 1] = 40 * (whole[1::2, 1] > 20)
            return whole
        case "far":
            return whole - 1e5
        case "powers":
            angle = torch.rand(count, generator=rng, dtype=F64) * 6.3
            radius = 10 ** (torch.rand(count, generator=rng, dtype=F64) * 16 - 8)
            return torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1)
        case "circle":
            return torch.stack((index.cos() * 100, index.sin() * 100), dim=-1)
    raise AssertionError(kind)


KINDS = (
    "whole",
    "fractions",
    "grid",
    "scaled",
    "one spot",
    "level line",
    "upright line",
    "diagonal",
    "outlier",
    "spot and outlier",
    "spots",
    "corner",
    "border",
    "far",
    "powers",
    "circle",
)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("points", KINDS)
def test_equals_the_reference(points, dtype, rng):
    database = _points(points, 400, rng).to(dtype)[None]
    query = torch.cat([_points(kind, 12, rng) for kind in KINDS]).to(dtype)[None]
    for k in (1, 4, 9, 40, 400):
        _assert_same(query, database, k)
    for k in (2, 6):
        _assert_same(database, database, k)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("count", [1, 2, 3, 8, 9, 10, 33, 40])
def test_any_number_of_points_and_neighbours(count, dtype, rng):
    for kind in ("whole", "one spot", "diagonal", "spot and outlier"):
        database = _points(kind, count, rng).to(dtype)[None]
        query = torch.cat((database, _points("whole", 5, rng).to(dtype)[None]), 1)
        for k in range(1, count + 1):
            _assert_same(query, database, k)


@pytest.mark.parametrize("dtype", [F32, F64])
def test_large_inputs(dtype, rng):
    database = (torch.rand(1, 20000, 2, generator=rng, dtype=dtype) * 200).round(decimals=1)
    query = torch.rand(1, 250, 2, generator=rng, dtype=dtype) * 240 - 20
    for k in (1, 4, 20, 200):
        _assert_same(query, database, k)


@pytest.mark.parametrize("dtype", [F32, F64])
def test_numbers_near_the_ends_of_their_range(dtype, rng):
    info = torch.finfo(dtype)
    for size in (info.max, info.max**0.5, info.tiny**0.5, info.tiny, info.tiny * info.eps):
        database = (torch.rand(1, 300, 2, generator=rng, dtype=F64) * 2 - 1) * size
        # Distances overflow to infinity and underflow to zero: ties, to the lower index.
        _assert_same(database[:, ::3].to(dtype), database.to(dtype), 5)
        database[:, 7] = 1.0
        _assert_same(database[:, ::3].to(dtype), database.to(dtype), 5)


# All pairs would take minutes.
@pytest.mark.timeout(60)
@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize(
    "kind", ["one spot", "level line", "outlier", "spot and outlier", "spots", "corner", "powers"]
)
def test_skewed_points_take_no_excessive_time(kind, dtype, rng):
    database = _points(kind, MANY, rng).to(dtype)[None]
    index, distance = torch.ops.aff_seg.knn(database, database, 4)
    some = torch.randint(0, MANY, (30,), generator=rng)
    want = reference.knn(database[:, some], database, 4)
    assert torch.equal(index[:, some], want[0]) and torch.equal(distance[:, some], want[1])


def test_batches_have_points_of_their_own(rng):
    kinds = ("whole", "one spot", "outlier", "spots")
    database = torch.stack([_points(kind, 500, rng) for kind in kinds])
    query = torch.stack([_points(kind, 700, rng) for kind in reversed(kinds)])
    _assert_same(query, database, 6)


def test_views(rng):
    query, database = torch.rand(3, 2, 90, generator=rng), torch.rand(3, 50, 4, generator=rng)
    query, database = query.transpose(1, 2), database[..., 1::2]
    assert not query.is_contiguous() and not database.is_contiguous()
    _assert_same(query, database, 5)
    _assert_same(query.flip(1)[:, ::3], database[:, 1:], 5)
    shared_query, shared = query[:1].expand(3, -1, -1), database[:1].expand(3, -1, -1)
    for pair in ((shared_query, shared), (shared_query, database), (query, shared)):
        _assert_same(*pair, 5)
    index, distance = torch.ops.aff_seg.knn(shared_query, shared, 5)
    assert index.is_contiguous() and distance.is_contiguous()


@pytest.mark.parametrize("dtype", [F32, F64])
def test_empty_inputs(dtype):
    for batch, queries in ((2, 0), (0, 3), (0, 0)):
        shape = (batch, queries, 4)
        query, database = torch.ones(batch, queries, 2, dtype=dtype), torch.ones(batch, 5, 2)
        index, distance = torch.ops.aff_seg.knn(query, database.to(dtype), 4)
        assert index.shape == distance.shape == shape
        assert index.dtype == torch.int32 and distance.dtype == dtype


def test_same_bits_with_any_threads(rng):
    database = torch.stack([_points(kind, 4000, rng) for kind in ("fractions", "spots")]).float()
    query = torch.stack([_points(kind, 3000, rng) for kind in ("whole", "spots")]).float()
    assert_same_with_any_threads(lambda: torch.ops.aff_seg.knn(query, database, 7))


@pytest.mark.parametrize("dtype", [F32, F64])
def test_registration(dtype, rng):
    query, database = torch.rand(2, 1, 8, 2, generator=rng, dtype=F64).to(dtype).unbind()
    torch.library.opcheck(torch.ops.aff_seg.knn.default, (query, database, 3))


def test_an_image_does_not_depend_on_its_batch(rng):
    query, database = torch.rand(3, 300, 2, generator=rng), torch.rand(3, 700, 2, generator=rng)
    together = torch.ops.aff_seg.knn(query, database, 5)
    for image in (slice(i, i + 1) for i in range(3)):
        alone = torch.ops.aff_seg.knn(query[image], database[image], 5)
        assert all(torch.equal(a, b[image]) for a, b in zip(alone, together, strict=True))
