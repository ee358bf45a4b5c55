"""Every operator once on a GPU, forward and backward, to be run under compute-sanitizer.

With ``tests`` on PYTHONPATH.
"""

import torch
from native_op import DTYPES, requiring_grad
from op_inputs import INPUTS, knn_inputs

from aff_seg import ops

# Besides the usual ones: what is rare in them.
OTHERS = {
    "cluster_attention": {"batch": 1, "count": 30, "dim": 24, "m": 30, "nearest": 1},
    "point_conv": {"scored": False, "m": 1, "nearest": 9, "channels": 64, "sign": -1},
    "shepard_interpolate": {"near": 9, "channels": 64},
    "deformable_points": {"counts": (2, 5), "dim": 32},
}


def main() -> None:
    gpu = torch.device("cuda")
    torch.manual_seed(0)
    for dtype in DTYPES:
        for name, inputs in INPUTS.items():
            for options in ({}, OTHERS[name]):
                leaves, given = inputs(dtype, **options)
                leaves = requiring_grad({key: x.to(gpu) for key, x in leaves.items()})
                given = {key: x.to(gpu) if torch.is_tensor(x) else x for key, x in given.items()}
                out = getattr(ops, name)(**leaves, **given)
                torch.autograd.grad(out, list(leaves.values()), torch.ones_like(out))
    for dtype in (torch.float32, torch.float64):
        for options in ({}, {"queries": 400, "count": 300, "k": 9}):
            given = knn_inputs(dtype, **options)[1]
            ops.knn(given["query"].to(gpu), given["database"].to(gpu), given["k"])
    torch.cuda.synchronize()
    print("Every operator ran.")


if __name__ == "__main__":
    main()
