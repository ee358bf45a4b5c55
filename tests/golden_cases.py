"""Golden cases: outputs measured on the published implementation, weights made from names."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parent / "golden"


class Case:
    """One ``.npz``: ``info`` says what it is, indexing gives its arrays."""

    def __init__(self, name: str):
        self.arrays = np.load(ROOT / f"{name}.npz")
        self.info = json.loads(str(self.arrays["case"]))

    def __getitem__(self, key: str) -> np.ndarray:
        return self.arrays[key]

    def keys(self, prefix: str) -> list[str]:
        return [k.removeprefix(prefix) for k in self.arrays.files if k.startswith(prefix)]


def noise(shape, seed: int) -> torch.Tensor:
    values = np.random.RandomState(seed).standard_normal(tuple(shape)).astype(np.float32)
    return torch.from_numpy(values)


def _weight(name: str, shape) -> torch.Tensor:
    rs = np.random.RandomState(zlib.crc32(name.encode()))
    r = rs.standard_normal(tuple(shape)).astype(np.float32)
    if "prob_net" in name:
        r = r * np.float32(0.25)
    if name.endswith("shepard_power"):
        r = np.full_like(r, 3.0)
    elif name.endswith("running_var"):
        r = 1 + 0.1 * np.abs(r)
    elif r.ndim > 1:
        r = r * np.sqrt(2 / r[0].size)
    elif name.endswith(("norm.weight", "bn.weight")) or (
        ".norm" in name and name.endswith("weight")
    ):
        r = 1 + 0.1 * r
    else:
        r = 0.1 * r
    return torch.from_numpy(np.asarray(r, dtype=np.float32))


def fill_weights(module: torch.nn.Module) -> None:
    """Set every floating entry from its published name."""
    state = module.state_dict()
    for name, value in state.items():
        if value.is_floating_point() and name != "criterion.empty_weight":
            state[name] = _weight(name, value.shape)
    module.load_state_dict(state)


def assert_gradients(module: torch.nn.Module, case: Case) -> None:
    """Compare gradients with the tolerances of the golden README."""
    norms = {name: float(case[f"gradnorm:{name}"]) for name in case.keys("gradnorm:")}
    largest = max(norms.values())
    grads = {name: p.grad for name, p in module.named_parameters()}
    assert norms
    for name, norm in norms.items():
        grad = grads[name].flatten().cpu()
        bound = 2e-3 * norm + 1e-5 * largest
        want = torch.from_numpy(case[f"grad:{name}"].astype(np.float32)).flatten()
        assert abs(grad.norm().item() - norm) <= bound, name
        assert (grad[: len(want)] - want).norm().item() <= bound, name
