"""What holds for every native operator that has gradients."""

import math

import pytest
import torch
from native_op import (
    assert_matches,
    assert_same_with_any_threads,
    native,
    needs_native,
    raw_arguments,
    requiring_grad,
    results,
    scattered_memory,
)
from op_inputs import INPUTS, LARGE

pytestmark = [needs_native, pytest.mark.parametrize("name", INPUTS)]

F32 = torch.float32
# Parameters; whatever else is a tensor has one entry per image.
PARAMETERS = {
    "cluster_attention": ("pos_weight", "pos_bias", "blank_k", "blank_v"),
    "point_conv": ("weight", "bias", "norm_weight", "norm_bias"),
    "shepard_interpolate": ("power",),
    "deformable_points": ("power",),
}


def _image(values: dict, name: str, image: int) -> dict:
    return {
        key: x[image : image + 1] if torch.is_tensor(x) and key not in PARAMETERS[name] else x
        for key, x in values.items()
    }


def _grad(name: str, leaves: dict, given: dict) -> torch.Tensor:
    return torch.randn_like(native(name, given)(**leaves))


def test_inputs_need_not_be_contiguous(name):
    leaves, given = INPUTS[name](F32)
    leaves = {key: scattered_memory(x) for key, x in leaves.items()}
    assert_matches(name, leaves, {key: scattered_memory(x) for key, x in given.items()})
    # One image thrice, and a gradient of ones.
    leaves, given = INPUTS[name](F32, batch=1)
    spread = [
        {k: x.expand(3, *x.shape[1:]) if k not in PARAMETERS[name] else x for k, x in xs.items()}
        if xs is leaves
        else {k: x.expand(3, *x.shape[1:]) if torch.is_tensor(x) else x for k, x in xs.items()}
        for xs in (leaves, given)
    ]
    copied = [{k: x.clone() if torch.is_tensor(x) else x for k, x in xs.items()} for xs in spread]
    shape = native(name, given)(**leaves).shape[1:]
    got = results(name, *spread, torch.ones(()).expand(3, *shape))
    want = results(name, *copied, torch.ones(3, *shape))
    assert all(torch.equal(got[key], want[key]) for key in want)


def test_same_bits_with_any_threads(name):
    leaves, given = INPUTS[name](F32, **LARGE[name])
    grad = _grad(name, leaves, given)
    assert_same_with_any_threads(lambda: tuple(results(name, leaves, given, grad).values()))


@pytest.mark.parametrize("batch", [1, 3])
def test_an_image_does_not_depend_on_its_batch(name, batch):
    leaves, given = INPUTS[name](F32, batch=batch)
    grad = _grad(name, leaves, given)
    together = results(name, leaves, given, grad)
    for image in range(batch):
        alone = results(
            name, _image(leaves, name, image), _image(given, name, image), grad[image : image + 1]
        )
        for key, x in _image(together, name, image).items():
            assert key in PARAMETERS[name] or torch.equal(x, alone[key]), key


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
def test_wild_values_stay_in_their_image(name, bad):
    leaves, given = INPUTS[name](F32)
    grad = _grad(name, leaves, given)
    calm = results(name, leaves, given, grad)
    for key, x in {**leaves, **given}.items():
        if torch.is_tensor(x) and x.is_floating_point():
            wild = x.clone()
            wild.view(-1)[-1] = bad
            got = results(
                name,
                {**leaves, key: wild} if key in leaves else leaves,
                {**given, key: wild} if key in given else given,
                grad,
            )
            if key not in PARAMETERS[name]:
                for part, value in _image(got, name, 0).items():
                    assert part in PARAMETERS[name] or torch.equal(value, calm[part][:1]), part


def test_no_images(name):
    leaves, given = INPUTS[name](F32, batch=0)
    got = results(name, leaves, given, _grad(name, leaves, given))
    assert len(got.pop("result")) == 0
    assert all(got[key].shape == x.shape and not got[key].any() for key, x in leaves.items())


@pytest.mark.parametrize("dtype", [F32, torch.float64, torch.bfloat16], ids=str)
def test_registration(name, dtype):
    leaves, given = INPUTS[name](dtype)
    arguments = raw_arguments(name, {**requiring_grad(leaves), **given})
    torch.library.opcheck(getattr(torch.ops.aff_seg, name).default, arguments)


def test_registration_of_backward(name):
    leaves, given = INPUTS[name](torch.bfloat16)
    values = {**leaves, **given, "grad": _grad(name, leaves, given)}
    if name == "cluster_attention":
        forward = torch.ops.aff_seg.cluster_attention
        values["out"], values["lse"] = forward(*raw_arguments(name, values))
    arguments = raw_arguments(f"{name}_backward", values)
    torch.library.opcheck(getattr(torch.ops.aff_seg, f"{name}_backward").default, arguments)
