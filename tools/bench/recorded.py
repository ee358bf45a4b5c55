"""Arguments of the operators as a real run of AFF-Tiny gives them."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from unittest import mock

import torch
from torch import Tensor

from aff_seg import layers, ops
from bench.models import our_model, random_image


@dataclass(frozen=True)
class Case:
    """A call of an operator."""

    operator: str
    args: tuple
    kwargs: dict

    @property
    def work(self) -> int:
        """Elements of all arguments, to find the largest call by."""
        return sum(x.numel() for x in self.args if isinstance(x, Tensor))

    @property
    def label(self) -> str:
        """The operator and its sizes."""
        first, second, third, *_ = self.args
        shape = first.shape[1:]
        if self.operator == "knn":
            sizes = f"{shape[0]} to {second.shape[1]} points, k = {third}"
        elif self.operator == "cluster_attention":
            sizes = f"{shape[0]} tokens, {shape[1]} heads of {shape[2]}"
        elif self.operator == "point_conv":
            centre, clusters, m = self.args[3:6]
            near = clusters.shape[2] * m
            sizes = (
                f"{shape[0]} to {centre.shape[1]} tokens, {near} neighbours, {shape[1]} channels"
            )
        elif self.operator == "shepard_interpolate":
            sizes = f"{shape[0]} to {third.shape[1]} tokens, {shape[1]} channels"
        else:
            queries = self.args[3].shape[1]
            sizes = f"{shape[0]} to {queries} tokens, {shape[1]} heads of {shape[2]}"
        return f"{self.operator}, {sizes}"


# The largest call of each kind is measured.
KINDS: tuple[tuple[str, Callable[[tuple], bool]], ...] = (
    ("knn", lambda args: args[2] == 4),
    ("knn", lambda args: args[0].dtype == torch.float64),
    ("cluster_attention", lambda args: args[0].shape[2] == 2),
    ("cluster_attention", lambda args: args[0].shape[2] == 8),
    ("point_conv", lambda args: args[5] > 1),
    ("point_conv", lambda args: args[5] == 1),
    ("shepard_interpolate", lambda args: True),
    ("deformable_points", lambda args: True),
)


def record(size: tuple[int, int]) -> list[Case]:
    """Calls of a run on one image, one of each kind, with no gradients attached."""
    calls: list[Case] = []

    def recorder(name: str, operator: Callable) -> Callable:
        def call(*args: object, **kwargs: object) -> object:
            calls.append(Case(name, args, kwargs))
            return operator(*args, **kwargs)

        return call

    torch.manual_seed(0)
    model = our_model("tiny")
    with ExitStack() as stack:
        # Whole calls, not parts that fit a cache.
        stack.enter_context(mock.patch.object(layers, "_PART", 1 << 62))
        for name in ops.active_paths():
            stack.enter_context(mock.patch.object(ops, name, recorder(name, getattr(ops, name))))
        model([{"image": random_image(size)}])
    chosen = [
        max(
            (case for case in calls if case.operator == name and wanted(case.args)),
            key=lambda case: case.work,
        )
        for name, wanted in KINDS
    ]
    return [
        Case(
            case.operator,
            tuple(x.detach() if isinstance(x, Tensor) else x for x in case.args),
            case.kwargs,
        )
        for case in chosen
    ]
