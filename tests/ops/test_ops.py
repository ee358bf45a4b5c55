"""Operators, native and reference, against loops that follow their definition word by word."""

import math

import pytest
import torch
import torch.nn.functional as F

from aff_seg import ops

F64 = torch.float64


def _positions(batch, count, size, generator):
    """Distinct whole positions in a square canvas."""
    pixels = [torch.randperm(size * size, generator=generator)[:count] for _ in range(batch)]
    index = torch.stack(pixels)
    return torch.stack((index % size, index // size), dim=-1)


@pytest.fixture(params=["native", "reference"], autouse=True)
def path(request, monkeypatch):
    """Run a test on the native operators and on the references."""
    if request.param == "native" and not ops.NATIVE:
        pytest.skip("the native operators are not built, or left out")
    if request.param == "reference":
        monkeypatch.setattr(ops, "NATIVE", False)
        monkeypatch.setattr(ops, "NATIVE_DEVICES", ())


@pytest.fixture
def rng():
    return torch.Generator().manual_seed(1)


def _relative(dx, dy):
    r = math.hypot(dx, dy)
    return [dx, dy, r, dy / r, dx / r] if r else [0.0] * 5


def _members(clusters, m, count):
    return [c * m + t for c in clusters.tolist() for t in range(m) if c * m + t < count]


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("k", [1, 4, 23])
def test_knn_takes_the_lower_index_among_equals(dtype, k, rng):
    # Few distinct whole positions, so that equal distances abound.
    query = torch.randint(0, 6, (2, 17, 2), generator=rng).to(dtype)
    database = torch.randint(0, 6, (2, 23, 2), generator=rng).to(dtype)
    index, dist = ops.knn(query, database, k)
    assert index.dtype == torch.int32
    for b in range(2):
        for q in range(17):
            d2 = ((database[b] - query[b, q]) ** 2).sum(-1).tolist()
            want = sorted(range(23), key=lambda j: (d2[j], j))[:k]
            assert index[b, q].tolist() == want
            assert dist[b, q].tolist() == [d2[j] for j in want]


def _attention_inputs(rng, *, count=21, heads=2, dim=4, m=4, nearest=3):
    shape = (2, count, heads, dim)
    num_clusters = -(-count // m)
    clusters = torch.stack(
        [torch.randperm(num_clusters, generator=rng)[:nearest] for _ in range(2 * count)]
    ).view(2, count, nearest)
    q, k, v = (torch.randn(shape, generator=rng, dtype=F64) for _ in range(3))
    pos = _positions(2, count, 9, rng).to(F64)
    weight, bias = (torch.randn(s, generator=rng, dtype=F64) for s in ((heads, 5), (heads,)))
    blank_k, blank_v = (torch.randn(heads * dim, generator=rng, dtype=F64) for _ in range(2))
    return q, k, v, pos, clusters, m, weight, bias, blank_k, blank_v


def _naive_attention(q, k, v, pos, clusters, m, weight, bias, blank_k, blank_v):
    out = torch.zeros_like(q)
    batch, count, heads, dim = q.shape
    for b in range(batch):
        for i in range(count):
            near = _members(clusters[b, i], m, count)
            for h in range(heads):
                scaled = q[b, i, h] / math.sqrt(dim)
                logits = [scaled @ blank_k.view(heads, dim)[h]]
                for j in near:
                    dx, dy = (pos[b, j] - pos[b, i]).tolist()
                    term = weight[h] @ torch.tensor(_relative(dx, dy), dtype=F64) + bias[h]
                    logits.append(scaled @ k[b, j, h] + term)
                share = torch.stack(logits).softmax(0)
                out[b, i, h] = share[0] * blank_v.view(heads, dim)[h]
                for s, j in zip(share[1:], near, strict=True):
                    out[b, i, h] += s * v[b, j, h]
    return out


@pytest.mark.parametrize(("count", "m", "nearest"), [(21, 4, 3), (7, 1, 5), (6, 6, 1), (1, 1, 1)])
def test_cluster_attention(count, m, nearest, rng):
    inputs = _attention_inputs(rng, count=count, m=m, nearest=nearest)
    torch.testing.assert_close(ops.cluster_attention(*inputs), _naive_attention(*inputs))


def test_cluster_attention_gradients(rng):
    q, k, v, pos, clusters, m, *learned = _attention_inputs(rng, count=9, heads=1, dim=3)
    leaves = [t.requires_grad_() for t in (q, k, v, *learned)]

    def run(q, k, v, *learned):
        return ops.cluster_attention(q, k, v, pos, clusters, m, *learned)

    assert torch.autograd.gradcheck(run, leaves)


def _conv_inputs(rng, *, count=13, channels=3, m=4):
    feat = torch.randn(2, count, channels, generator=rng, dtype=F64)
    score = torch.rand(2, count, generator=rng, dtype=F64)
    pos = _positions(2, count, 7, rng).to(F64)
    centre = torch.tensor([[0, 5, 12], [3, 3, 1]])
    clusters = torch.tensor([[[0, 3], [1, 2], [3, 0]], [[2, 0], [0, 1], [3, 2]]])
    learned = [torch.randn(s, generator=rng, dtype=F64) for s in ((4, 5), (4,), (4,), (4,))]
    return feat, score, pos, centre, clusters, m, *learned


@pytest.mark.parametrize("scored", [True, False])
@pytest.mark.parametrize("sign", [1, -1])
def test_point_conv(scored, sign, rng):
    feat, score, pos, centre, clusters, m, weight, bias, nw, nb = _conv_inputs(rng)
    got = ops.point_conv(
        feat, score if scored else None, pos, centre, clusters, m, weight, bias, nw, nb, sign=sign
    )
    want = torch.zeros_like(got)
    for b in range(2):
        for q in range(3):
            for j in _members(clusters[b, q], m, feat.shape[1]):
                dx, dy = (sign * (pos[b, j] - pos[b, centre[b, q]])).tolist()
                w = weight @ torch.tensor(_relative(dx, dy), dtype=F64) + bias
                w = F.gelu(F.layer_norm(w, (4,), nw, nb))
                w = w * score[b, j] if scored else w
                want[b, q] += torch.outer(w, feat[b, j])
    torch.testing.assert_close(got, want)


def test_point_conv_gradients(rng):
    feat, score, pos, centre, clusters, m, *learned = _conv_inputs(rng)
    leaves = [t.requires_grad_() for t in (feat, score, *learned)]

    def run(feat, score, *learned):
        return ops.point_conv(feat, score, pos, centre, clusters, m, *learned)

    assert torch.autograd.gradcheck(run, leaves)


def test_shepard_interpolate(rng):
    feat = torch.randn(2, 11, 3, generator=rng, dtype=F64)
    pos = _positions(2, 11, 6, rng).to(F64)
    query = pos[:, :5] + torch.tensor([[0.0, 0], [1, 0], [0.5, 2], [-3, 1], [0, 0]], dtype=F64)
    index, d2 = ops.knn(query, pos, 4)
    got = ops.shepard_interpolate(feat, pos, query, index, 3.0)
    weight = 1 / (d2**3 + 1e-11)
    near = torch.stack([feat[b][index[b].long()] for b in range(2)])
    want = (weight[..., None] * near).sum(2) / weight.sum(2)[..., None]
    torch.testing.assert_close(got, want)
    # A query on a token reads that token.
    torch.testing.assert_close(got[:, 0], feat[:, 0], rtol=1e-9, atol=1e-9)


def _deformable_inputs(rng, *, size=5):
    heads, dim, levels, points = 2, 3, 2, 2
    counts = (3, 9)
    pos = torch.cat([_positions(2, n, size, rng) for n in counts], 1).to(F64)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    pixels = torch.stack((x, y), -1).view(1, -1, 2).to(F64).expand(2, -1, -1)
    table, start = [], 0
    for n in counts:
        near = ops.knn(pixels, pos[:, start : start + n].contiguous(), min(4, n))[0] + start
        table.append(F.pad(near, (0, 4 - near.shape[2]), value=-1).unflatten(1, (size, size)))
        start += n
    value = torch.randn(2, sum(counts), heads, dim, generator=rng, dtype=F64)
    location = torch.rand(2, 4, heads, levels, points, 2, generator=rng, dtype=F64) * (size + 4) - 2
    weight = torch.rand(2, 4, heads, levels, points, generator=rng, dtype=F64)
    return value, pos, torch.stack(table, 1), location, weight


def test_deformable_points(rng):
    value, pos, table, location, weight = _deformable_inputs(rng)
    # Half-way points round to even; a location may lie outside and on a token.
    location[0, 0, 0, 0, 0] = torch.tensor([0.5, 1.5])
    location[0, 0, 0, 1, 0] = torch.tensor([-7.0, 99.0])
    location[0, 1, 0, 0, 0] = pos[0, 0]
    power = torch.tensor([1.7], dtype=F64)
    got = ops.deformable_points(value, pos, table, location, weight, power)
    want = torch.zeros_like(got)
    for b, q, h, level, p in torch.cartesian_prod(*map(torch.arange, weight.shape)).tolist():
        loc = location[b, q, h, level, p]
        x, y = (min(max(round(c), 0), 4) for c in loc.tolist())
        near = [t for t in table[b, level, y, x].tolist() if t >= 0]
        inverse = [1 / (((pos[b, t] - loc) ** 2).sum() ** 1.7 + 1e-11) for t in near]
        for t, w in zip(near, inverse, strict=True):
            share = w / sum(inverse) * weight[b, q, h, level, p]
            want[b, q, h] += share * value[b, t, h]
    torch.testing.assert_close(got, want)


def test_deformable_points_gradients(rng):
    value, pos, table, location, weight = _deformable_inputs(rng)
    power = torch.tensor([1.7], dtype=F64, requires_grad=True)
    # Away from half-way points, where the choice of the pixel jumps.
    location = location.floor() + 0.1 + 0.3 * (location - location.floor())
    leaves = [t.requires_grad_() for t in (value, location, weight)]

    def run(value, location, weight, power):
        return ops.deformable_points(value, pos, table, location, weight, power)

    assert torch.autograd.gradcheck(run, [*leaves, power])


def test_deformable_points_gradients_are_finite_on_a_token(rng):
    value, pos, table, location, weight = _deformable_inputs(rng)
    location = pos[:, :4, None, None, None].expand_as(location).clone().requires_grad_()
    power = torch.tensor([3.0], dtype=F64, requires_grad=True)
    ops.deformable_points(value, pos, table, location, weight, power).sum().backward()
    assert location.grad.isfinite().all() and power.grad.isfinite().all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: ops.knn(x, x, 0), "k must be 1 to 5, got 0"),
        (lambda x: ops.knn(x, x, 6), "k must be 1 to 5, got 6"),
        (lambda x: ops.knn(x[0], x, 1), r"query must have shape \(B, Q, 2\), got \(5, 2\)"),
        (lambda x: ops.shepard_interpolate(x, x, x, x[..., 0], 3.0), "index must have shape"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(1, 5, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"index": torch.rand(1, 3, 2)}, "index must be int32 or int64, got torch.float32"),
        ({"power": torch.ones(2)}, "power must be one number, got shape"),
        ({"query": torch.rand(1, 3, 3)}, r"query must have shape \(B, Q, 2\), got"),
        ({"pos": torch.rand(1, 4, 2, device="meta")}, "pos must be on cpu, got meta"),
    ],
)
def test_wrong_tensors_are_named(change, message):
    given = _few_tokens()
    ops.shepard_interpolate(**given)
    with pytest.raises(ValueError, match=message):
        ops.shepard_interpolate(**{**given, **change})


def _few_tokens() -> dict:
    return {
        "feat": torch.rand(1, 4, 5),
        "pos": torch.rand(1, 4, 2),
        "query": torch.rand(1, 3, 2),
        "index": torch.zeros(1, 3, 2, dtype=torch.int32),
        "power": 2.0,
    }


@pytest.mark.cpu_kernels
def test_wrong_values_are_named():
    index = torch.full((1, 3, 2), 9)
    with pytest.raises(IndexError, match="index must lie in 0 to 3, got 9 to 9"):
        ops.shepard_interpolate(**{**_few_tokens(), "index": index})
    with pytest.raises(ValueError, match="query must be finite"):
        ops.knn(torch.full((1, 2, 2), math.nan), torch.zeros(1, 3, 2), 1)


def test_wrong_counts_are_named():
    query, database = torch.zeros(1, 2, 2), torch.zeros(1, 3, 2)
    for k in (0, 4, 2.0):
        with pytest.raises(ValueError, match=f"k must be 1 to 3, got {k}"):
            ops.knn(query, database, k)
    with pytest.raises(ValueError, match="database must be float32 or float64 like the other"):
        ops.knn(query, database.double(), 1)
