"""The native operators: fake kernels and gradients of what ``csrc`` registers.

Importing this module loads ``aff_seg._C``, whose schemas and kernels it completes. Shapes are
those of :mod:`aff_seg.ops`; floating inputs other than features are float32, or float64 beside
float64 features.
"""

import inspect

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.library import register_autograd, register_fake

_REMEDY = (
    "build them again with `pip install --no-build-isolation --no-deps -e .`, or set "
    "AFF_SEG_OPS=reference to run without them."
)
try:
    from aff_seg import _C  # registers schemas and kernels
except ImportError as error:
    raise ImportError(
        f"the native operators do not load beside PyTorch {torch.__version__} ({error}): {_REMEDY}"
    ) from error

__all__ = ["CUDA"]
_OPS = torch.ops.aff_seg


def _fake(name: str):
    """Register the fake kernel of an operator.

    It also runs where some tensors are on the meta device and others are not, which is refused.
    """
    registered = getattr(_OPS, name, None)
    names = registered and [argument.name for argument in registered.default._schema.arguments]

    def register(kernel):
        if names != list(inspect.signature(kernel).parameters):
            raise ImportError(
                f"the native operators were built from other sources ({name} differs): {_REMEDY}"
            )

        def checked(*args):
            tensors = [(n, x) for n, x in zip(names, args, strict=True) if isinstance(x, Tensor)]
            want = tensors[0][1].device
            for argument, x in tensors:
                if x.device != want:
                    raise ValueError(f"{argument} must be on {want}, got {x.device}")
            return kernel(*args)

        return register_fake(f"aff_seg::{name}", checked)

    return register


@_fake("knn")
def _(query, database, k):
    shape = (query.shape[0], query.shape[1], k)
    return query.new_empty(shape, dtype=torch.int32), query.new_empty(shape)


@_fake("cluster_readers")
def _(clusters, count):
    start = clusters.new_empty(clusters.shape[0] * count + 1, dtype=torch.int64)
    return start, clusters.new_empty(clusters.numel())


@_fake("cluster_attention")
def _(q, k, v, pos, clusters, m, pos_weight, pos_bias, blank_k, blank_v, start, place):
    return torch.empty_like(q, memory_format=torch.contiguous_format), pos.new_empty(q.shape[:3])


@_fake("cluster_attention_backward")
def _(
    grad,
    q,
    k,
    v,
    pos,
    clusters,
    m,
    pos_weight,
    pos_bias,
    blank_k,
    blank_v,
    out,
    lse,
    start,
    place,
):
    return tuple(_like(x) for x in (q, k, v, pos_weight, pos_bias, blank_k, blank_v))


@_fake("point_conv")
def _(feat, score, pos, centre, clusters, m, weight, bias, norm_weight, norm_bias, norm_eps, sign):
    return feat.new_empty((*centre.shape, weight.shape[0], feat.shape[2]))


@_fake("point_conv_backward")
def _(
    grad,
    feat,
    score,
    pos,
    centre,
    clusters,
    m,
    weight,
    bias,
    norm_weight,
    norm_bias,
    norm_eps,
    sign,
):
    scores = pos.new_empty(0) if score is None else _like(score)
    return _like(feat), scores, *(_like(x) for x in (weight, bias, norm_weight, norm_bias))


@_fake("shepard_interpolate")
def _(feat, pos, query, index, power):
    return feat.new_empty((*index.shape[:2], feat.shape[2]))


@_fake("shepard_interpolate_backward")
def _(grad, feat, pos, query, index, power):
    return _like(feat), _like(power)


@_fake("deformable_points")
def _(value, pos, table, location, weight, power):
    return value.new_empty((*location.shape[:3], value.shape[3]))


@_fake("deformable_points_backward")
def _(grad, value, pos, table, location, weight, power):
    return _like(value), _like(location), _like(weight), _like(power)


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _save_inputs(ctx, inputs, output):
    ctx.plain = [None if isinstance(x, Tensor) else x for x in inputs]
    ctx.save_for_backward(*(x if isinstance(x, Tensor) else None for x in inputs))


def _inputs(ctx) -> list:
    return [x if x is not None else y for x, y in zip(ctx.saved_tensors, ctx.plain, strict=True)]


def _save_attention(ctx, inputs, output):
    *tensors, m, pos_weight, pos_bias, blank_k, blank_v, start, place = inputs
    ctx.m = m
    ctx.save_for_backward(*tensors, pos_weight, pos_bias, blank_k, blank_v, *output, start, place)


@once_differentiable
def _attention_backward(ctx, grad, _):
    q, k, v, pos, clusters, *rest, start, place = ctx.saved_tensors
    if start is None:
        start, place = _OPS.cluster_readers(clusters, -(-q.shape[1] // ctx.m))
    grads = _OPS.cluster_attention_backward(
        grad, q, k, v, pos, clusters, ctx.m, *rest, start, place
    )
    return (*grads[:3], None, None, None, *grads[3:], None, None)


@once_differentiable
def _point_conv_backward(ctx, grad):
    inputs = _inputs(ctx)
    feat, score, *learned = _OPS.point_conv_backward(grad, *inputs)
    score = None if inputs[1] is None else score
    return (feat, score, None, None, None, None, *learned, None, None)


@once_differentiable
def _shepard_backward(ctx, grad):
    feat, power = _OPS.shepard_interpolate_backward(grad, *_inputs(ctx))
    return feat, None, None, None, power


@once_differentiable
def _deformable_backward(ctx, grad):
    value, location, weight, power = _OPS.deformable_points_backward(grad, *_inputs(ctx))
    return value, None, None, location, weight, power


register_autograd("aff_seg::cluster_attention", _attention_backward, setup_context=_save_attention)
register_autograd("aff_seg::point_conv", _point_conv_backward, setup_context=_save_inputs)
register_autograd("aff_seg::shepard_interpolate", _shepard_backward, setup_context=_save_inputs)
register_autograd("aff_seg::deformable_points", _deformable_backward, setup_context=_save_inputs)

#: Whether there are kernels for CUDA.
CUDA: bool = _C.CUDA
