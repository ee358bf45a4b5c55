"""Arguments of the operators as a real run of AFF-Tiny gives them."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from unittest import mock

import torch
from torch import Tensor

from aff_seg import layers, ops
from aff_seg.backbone import clustering
from bench.models import autocast, our_model, random_image

# Arguments that are features, which may have fewer bits; those that get gradients.
FEATURES = {
    "knn": (),
    "cluster_attention": (0, 1, 2),
    "point_conv": (0,),
    "shepard_interpolate": (0,),
    "deformable_points": (0,),
}
LEARNED = {
    "cluster_attention": (0, 1, 2, 6, 7, 8, 9),
    "point_conv": (0, 1, 6, 7, 8, 9),
    "shepard_interpolate": (0,),
    "deformable_points": (0, 3, 4, 5),
}


@dataclass(frozen=True)
class Case:
    """A call of an operator."""

    operator: str
    args: tuple
    kwargs: dict

    @property
    def dtype(self) -> torch.dtype:
        """Of the features, or else of the positions."""
        return self.args[0].dtype

    @property
    def learned(self) -> list[int]:
        """Positions of the arguments that get gradients."""
        learned = LEARNED.get(self.operator, ())
        return [i for i in learned if isinstance(self.args[i], Tensor)]

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
            near = f"{self.args[4].shape[2]} clusters of {self.args[5]}"
            sizes = f"{shape[0]} tokens, {shape[1]} heads of {shape[2]}, {near}"
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


def record(size: tuple[int, int], dtype: torch.dtype = torch.float32) -> list[Case]:
    """Calls of a run on one image, one of each kind, with no gradients attached.

    The run is under autocast for another type than float32, and features that the model keeps in
    float32 nevertheless are converted.
    """
    calls: list[Case] = []

    def recorder(name: str, operator: Callable) -> Callable:
        def call(*args: object, **kwargs: object) -> object:
            calls.append(Case(name, args, kwargs))
            return operator(*args, **kwargs)

        return call

    torch.manual_seed(0)
    model = our_model("tiny")
    # What an earlier run left would not be called for.
    clustering._remembered_grid.cache_clear()
    with ExitStack() as stack:
        stack.enter_context(autocast(dtype))
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
            tuple(
                x.detach().to(dtype if i in FEATURES[case.operator] else x.dtype)
                if isinstance(x, Tensor)
                else x
                for i, x in enumerate(case.args)
            ),
            case.kwargs,
        )
        for case in chosen
    ]
