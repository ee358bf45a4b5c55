"""The native attention over clusters against its reference in PyTorch."""

import importlib.util

import pytest
import torch

from aff_seg import ops
from aff_seg.ops import reference

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("aff_seg._C") is None, reason="the native operators are not built"
)

F64 = torch.float64
DTYPES = [F64, torch.float32, torch.float16, torch.bfloat16]
# Gradients, and where in the arguments what they belong to stands.
LEARNED = {"q": 0, "k": 1, "v": 2, "pos_weight": 6, "pos_bias": 7, "blank_k": 8, "blank_v": 9}
# (B, N, heads, D, m, R)
SHAPES = {
    "ragged last cluster": (2, 50, 2, 32, 8, 3),
    "as in AFF": (1, 136, 4, 16, 8, 6),
    "as in AFF-Base": (1, 97, 2, 32, 24, 3),
    "m = 1": (2, 30, 2, 24, 1, 9),
    "m = 3": (1, 31, 1, 16, 3, 5),
    "m = 20": (1, 90, 2, 16, 20, 4),
    "N = 1": (2, 1, 2, 16, 1, 1),
    "N < m": (1, 5, 2, 16, 8, 1),
    "R = 1": (1, 40, 2, 32, 8, 1),
    "global": (2, 47, 2, 32, 47, 1),
    "D = 1": (1, 33, 2, 1, 5, 4),
    "D = 3": (2, 33, 3, 3, 4, 3),
    "D = 24": (1, 44, 2, 24, 8, 4),
    "D = 64": (1, 40, 1, 64, 8, 3),
    "many heads and neighbours": (1, 620, 8, 16, 8, 12),
}


def _case(batch, tokens, heads, dim, m, near, dtype=torch.float32):
    """Arguments of the operator: k and v are views of one tensor, as in the backbone."""
    exact = F64 if dtype == F64 else torch.float32
    count = -(-tokens // m)
    assert near <= count
    clusters = torch.rand(batch, tokens, count)
    own = torch.arange(tokens) // m
    clusters[:, torch.arange(tokens), own] = 2  # always among the chosen: r = 0 occurs
    clusters = clusters.topk(near, dim=-1).indices.int()
    pos = torch.randint(0, 40, (batch, tokens, 2)).to(exact)
    q = torch.randn(batch, tokens, heads, dim).to(dtype)
    k, v = torch.randn(batch, tokens, heads, 2, dim).to(dtype).unbind(-2)
    weight, bias = torch.randn(heads, 5, dtype=exact) / 8, torch.randn(heads, dtype=exact)
    blanks = torch.randn(2, heads * dim, dtype=exact).unbind()
    return [q, k, v, pos, clusters, m, weight, bias, *blanks]


def _as_double(arguments):
    return [
        x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
        for x in arguments
    ]


def _with_gradients(function, arguments, grad):
    """Result and gradients, by name."""
    arguments = list(arguments)
    leaves = []
    for index in LEARNED.values():
        leaves.append(arguments[index].detach().clone().requires_grad_())
        arguments[index] = leaves[-1]
    out = function(*arguments)
    return {"out": out.detach()} | dict(
        zip(LEARNED, torch.autograd.grad(out, leaves, grad), strict=True)
    )


def _assert_close(got, want, name, tolerance):
    # The size of values is floored: a gradient may be zero but for rounding.
    limit = tolerance * max(want.abs().max().item(), 1e-3)
    assert got.shape == want.shape, name
    assert (got.double() - want).abs().max().item() <= limit, name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_agrees_with_the_reference(shape, dtype):
    arguments = _case(*shape, dtype)
    grad = torch.randn(arguments[0].shape).to(dtype)
    want = _with_gradients(reference.cluster_attention, _as_double(arguments), grad.double())
    got = _with_gradients(ops.cluster_attention, arguments, grad)
    for name, value in want.items():
        exact = got[name].dtype
        assert exact == (dtype if name in ("out", "q", "k", "v") else arguments[3].dtype)
        tolerance = {F64: 1e-11, torch.float32: 1e-5 if name == "out" else 2e-5}
        _assert_close(got[name], value, name, tolerance.get(exact, torch.finfo(exact).eps))


def test_same_bits_with_any_number_of_threads():
    results = []
    threads = torch.get_num_threads()
    for shape in (SHAPES["ragged last cluster"], SHAPES["many heads and neighbours"]):
        torch.manual_seed(1)
        arguments = _case(*shape)
        grad = torch.randn(arguments[0].shape)
        try:
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                results.append(_with_gradients(ops.cluster_attention, arguments, grad))
        finally:
            torch.set_num_threads(threads)
        for other in results[1:]:
            for name, value in results[0].items():
                assert torch.equal(value, other[name]), name
        results.clear()


def test_an_image_does_not_depend_on_its_batch():
    arguments = _case(3, 50, 2, 16, 8, 3)
    together = ops.cluster_attention(*arguments)
    for image in range(3):
        alone = [x[image : image + 1] for x in arguments[:5]]
        assert torch.equal(
            ops.cluster_attention(*alone, *arguments[5:]), together[image : image + 1]
        )


def test_layouts_do_not_matter():
    arguments = _case(2, 50, 2, 16, 8, 3)
    arguments[3] = arguments[3][:1].expand(2, -1, -1)
    arguments[4] = arguments[4][:1].expand(2, -1, -1)
    grad = torch.randn(arguments[0].shape)
    want = _with_gradients(
        ops.cluster_attention, [x.clone() if torch.is_tensor(x) else x for x in arguments], grad
    )
    out = ops.cluster_attention(*arguments)
    strided = list(arguments)
    strided[0] = arguments[0].transpose(1, 2).contiguous().transpose(1, 2)
    strided[1] = arguments[1].repeat_interleave(2, -1)[..., ::2]
    strided[2] = arguments[2].permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    strided[6] = arguments[6].t().contiguous().t()
    strided[8] = arguments[8].repeat_interleave(2)[::2]
    assert torch.equal(out, want["out"])
    assert torch.equal(ops.cluster_attention(*strided), want["out"])
    everywhere = [x.requires_grad_() if i in (0, 1, 2) else x for i, x in enumerate(strided)]
    ops.cluster_attention(*everywhere).sum().backward()  # a gradient of stride 0
    ones = _with_gradients(ops.cluster_attention, arguments, torch.ones_like(grad))
    assert all(torch.equal(everywhere[i].grad, ones[n]) for i, n in enumerate("qkv"))


@pytest.mark.parametrize("shape", [(2, 11, 2, 3, 3, 2), (1, 6, 1, 2, 6, 1), (1, 5, 2, 1, 1, 3)])
def test_gradcheck(shape):
    arguments = _case(*shape, F64)
    leaves = [arguments[i].detach().clone().requires_grad_() for i in LEARNED.values()]

    def function(*learned):
        for index, leaf in zip(LEARNED.values(), learned, strict=True):
            arguments[index] = leaf
        return ops.cluster_attention(*arguments)

    assert torch.autograd.gradcheck(function, leaves)


def test_exponential_is_accurate():
    """With one neighbour of logit x, value 1 and a blank token of zeros: the logistic function."""
    x = torch.linspace(-87, 20, 20001).view(1, -1, 1, 1)
    count = x.shape[1]
    clusters = torch.arange(count, dtype=torch.int32).view(1, -1, 1)
    one, zero = torch.ones_like(x), torch.zeros(1)
    got = ops.cluster_attention(
        *(one, x, one, torch.zeros(1, count, 2), clusters, 1),
        *(torch.zeros(1, 5), zero, zero, zero),
    )
    want = x.double().sigmoid()
    assert ((got - want) / want).abs().max() < 4e-7


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
@pytest.mark.parametrize("bias", [1e4, -1e4])
def test_extreme_logits(bias, dtype):
    arguments = _case(1, 50, 2, 16, 8, 3, dtype)
    arguments[7] = arguments[7] + bias
    grad = torch.randn(arguments[0].shape, dtype=dtype)
    want = _with_gradients(reference.cluster_attention, _as_double(arguments), grad.double())
    got = _with_gradients(ops.cluster_attention, arguments, grad)
    for name, value in want.items():  # logits of 1e4 are known to 1e-3 in float32
        _assert_close(got[name], value, name, 1e-2 if dtype == torch.float32 else 1e-10)
    arguments[7] = arguments[7] - bias
    arguments[0] = arguments[0] * 1e4
    got = _with_gradients(ops.cluster_attention, arguments, grad)
    assert all(value.isfinite().all() for value in got.values())


@pytest.mark.parametrize("shape", [(0, 9, 2, 16, 4, 2), (2, 0, 2, 16, 4, 0)])
def test_nothing_to_do(shape):
    arguments = _case(*shape)
    got = _with_gradients(ops.cluster_attention, arguments, torch.zeros(arguments[0].shape))
    for name, index in LEARNED.items():
        assert torch.equal(got[name], torch.zeros_like(arguments[index])), name


def test_no_clusters_leave_the_blank_token():
    arguments = _case(1, 9, 2, 16, 4, 2)
    arguments[4] = arguments[4][..., :0]
    got = ops.cluster_attention(*arguments)
    torch.testing.assert_close(got, arguments[9].view(2, 16).expand(1, 9, 2, 16))


@pytest.mark.parametrize(
    "index, change, error, message",
    [
        (4, lambda x: x + 10, IndexError, "clusters must lie in 0 to 6, got 10 to 16"),
        (4, lambda x: x - 1, IndexError, "clusters must lie in 0 to 6, got -1 to 5"),
        (4, lambda x: x.long(), ValueError, "clusters must be int32, got Long"),
        (0, lambda x: x.int(), ValueError, "q must be floating point, got Int"),
        (1, lambda x: x.half(), ValueError, "k must be Float, got Half"),
        (2, lambda x: x.double(), ValueError, "v must be Float, got Double"),
        (3, lambda x: x.double(), ValueError, "pos must be Float beside Float q, got Double"),
        (6, lambda x: x.half(), ValueError, "pos_weight must be Float, got Half"),
        (1, lambda x: x[:, 1:], ValueError, r"k must have shape \[1, 50, 2, 16\], got \[1, 49"),
        (8, lambda x: x[1:], ValueError, r"blank_k must have shape \[32\], got \[31\]"),
        (5, lambda x: 0, ValueError, "m must be at least 1, got 0"),
    ],
)
def test_errors_name_the_argument_and_the_value(index, change, error, message):
    arguments = _case(1, 50, 2, 16, 8, 3)
    arguments[index] = change(arguments[index])
    with pytest.raises(error, match=message):
        torch.ops.aff_seg.cluster_attention(*arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_registration(dtype):
    arguments = _case(1, 20, 2, 16, 8, 2, dtype)
    for index in LEARNED.values():
        arguments[index] = arguments[index].detach().clone().requires_grad_()
    torch.library.opcheck(torch.ops.aff_seg.cluster_attention.default, arguments)
