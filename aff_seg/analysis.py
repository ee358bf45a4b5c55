"""What a model costs: parameters, FLOPs, memory and tokens, found in one forward pass.

A FLOP here is a multiply-add, counted once. What fvcore counts is counted as fvcore does: products
of matrices and convolutions; five a value for norms (two for batch norm), one less without a
learned scale; four a value for bilinear resizing; nothing for what works element by element. The
operators count what :mod:`aff_seg.ops.counts` says. fvcore itself cannot trace models that compute
with the number of their tokens.
"""

import inspect
import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from aff_seg import ops
from aff_seg.backbone.aff import Stage
from aff_seg.head.mask_decoder import MultiScaleMaskedTransformerDecoder
from aff_seg.head.pixel_decoder import DecodedPixels
from aff_seg.ops.counts import operations

PRODUCTS, NORMS, RESIZING = "products and convolutions", "norms", "resizing"
EARLY_MASKS = "early predictions off the tokens"


@dataclass(frozen=True)
class StageTokens:
    """Tokens of a stage of one image, and their channels."""

    tokens: int
    channels: int


@dataclass
class Analysis:
    """What one forward pass costs.

    Modules go by name, the whole model by ""; a module includes what it calls and holds.

    Attributes:
        parameters: numbers learned, of each module.
        flops: of each module and kind. The kinds are :data:`PRODUCTS`, :data:`NORMS`,
            :data:`RESIZING`, the operators' names, and :data:`EARLY_MASKS`. The last is part of
            the model as published, which predicts all masks on the whole canvas after every
            layer; inference here leaves it out, because only the tokens of the next level matter.
        peak: most bytes of tensors that live at once while a module runs, beyond parameters and
            images: a sum of their sizes. What an operation holds while it runs is not in it.
        stages: of an AFF backbone.
    """

    parameters: Counter[str] = field(default_factory=Counter)
    flops: dict[str, Counter[str]] = field(default_factory=dict)
    peak: Counter[str] = field(default_factory=Counter)
    stages: list[StageTokens] = field(default_factory=list)

    def total_flops(self, module: str = "") -> int:
        """Of a module, as published."""
        return self.flops.get(module, Counter()).total()

    def skipped_flops(self) -> int:
        """What of the total inference leaves out."""
        return self.flops.get("", Counter())[EARLY_MASKS]


@torch.no_grad()
def analyze(model: nn.Module, inputs: Any) -> Analysis:
    """Run a model once and count.

    Args:
        model: anything; it runs in eval mode.
        inputs: argument of its ``forward``.
    """
    modules = dict(model.named_modules())
    analysis = Analysis()
    for name, parameter in model.named_parameters():
        for holder in _holders(name.rpartition(".")[0]):
            analysis.parameters[holder] += parameter.numel()
    known = [*model.parameters(), *model.buffers(), *tree_leaves(inputs)]
    watch = _Watch(analysis, [x for x in known if isinstance(x, Tensor)])
    with ExitStack() as stack:
        for module in modules.values():
            stack.callback(setattr, module, "training", module.training)
        model.eval()
        for name, module in modules.items():
            for hook in watch.hooks(name, module):
                stack.callback(hook.remove)
        stack.enter_context(_operators_seen_by(watch))
        stack.enter_context(watch)
        model(inputs)
    return analysis


def analyze_config(cfg: CfgNode, size: tuple[int, int]) -> Analysis:
    """Cost of segmenting one black image with the model of a config.

    Its weights are random: FLOPs depend on them, a little, only where results are resized to the
    image. The heads of Detectron2's detectors take every box, however low its score, up to
    ``TEST.DETECTIONS_PER_IMAGE``: the most that they can cost.

    Args:
        cfg: of any architecture.
        size: (H, W) of the image in pixels.
    """
    cfg = cfg.clone()
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    torch.manual_seed(0)
    image = torch.zeros(3, *size)
    return analyze(build_model(cfg), [{"image": image, "height": size[0], "width": size[1]}])


def _holders(name: str) -> list[str]:
    """A module's name and those of all around it: "a.b" gives "", "a" and "a.b"."""
    parts = name.split(".") if name else []
    return [".".join(parts[:end]) for end in range(len(parts) + 1)]


class _Watch(TorchDispatchMode):
    """Sees every operation of a forward pass.

    Args:
        analysis: gets the counts.
        known: tensors that were there before.
    """

    def __init__(self, analysis: Analysis, known: list[Tensor]):
        super().__init__()
        self._analysis = analysis
        self._running: list[list[str]] = [[""]]
        self._inside_operator = False
        self._alive = {x.untyped_storage()._cdata for x in known}
        self._bytes = 0

    def hooks(self, name: str, module: nn.Module) -> Iterator[torch.utils.hooks.RemovableHandle]:
        """Hooks that tell when a module runs."""

        def begin(*_: Any) -> None:
            self._running.append(_holders(name))

        def end(_: nn.Module, args: tuple, output: Any) -> None:
            if isinstance(module, MultiScaleMaskedTransformerDecoder):
                self._count(EARLY_MASKS, _early_predictions(module, *args))
            if isinstance(module, Stage):
                _, tokens, channels = output[0].feat.shape
                self._analysis.stages.append(StageTokens(tokens, channels))
            self._running.pop()

        yield module.register_forward_pre_hook(begin)
        yield module.register_forward_hook(end)

    def call(self, name: str, operator: Callable, *args: Any, **kwargs: Any) -> Any:
        """Call an operator of ours and count it as one."""
        given = inspect.signature(operator).bind(*args, **kwargs)
        count = operations(name, given.args)
        if count is not None:
            self._count(name, count.multiply_adds)
        self._inside_operator = True
        try:
            return operator(*args, **kwargs)
        finally:
            self._inside_operator = False

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        output = function(*args, **(kwargs or {}))
        if not self._inside_operator:
            kind, count = _count(function.overloadpacket.__name__, args, output)
            self._count(kind, count)
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                self._live(tensor.untyped_storage())
        return output

    def _around(self) -> set[str]:
        """Names of the modules that run now."""
        return {name for names in self._running for name in names}

    def _count(self, kind: str, count: int) -> None:
        if count:
            for name in self._around():
                self._analysis.flops.setdefault(name, Counter())[kind] += count

    def _live(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return
        self._alive.add(key)
        self._bytes += size
        weakref.finalize(storage, self._free, key, size).atexit = False
        peak = self._analysis.peak
        for name in self._around():
            peak[name] = max(peak[name], self._bytes)

    def _free(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self._bytes -= size


@contextmanager
def _operators_seen_by(watch: _Watch) -> Iterator[None]:
    """Have the model's calls of our operators, native or not, go through ``watch``."""
    originals = {name: getattr(ops, name) for name in ops.active_paths()}

    def seen(name: str) -> Callable:
        return lambda *args, **kwargs: watch.call(name, originals[name], *args, **kwargs)

    try:
        for name in originals:
            setattr(ops, name, seen(name))
        yield
    finally:
        for name, operator in originals.items():
            setattr(ops, name, operator)


def _count(name: str, args: tuple, output: Any) -> tuple[str, int]:
    """Kind and FLOPs of an operation of PyTorch."""
    if name == "mm":
        return PRODUCTS, args[0].numel() * args[1].shape[1]
    if name == "bmm":
        return PRODUCTS, args[0].numel() * args[1].shape[2]
    if name in ("addmm", "baddbmm"):
        return PRODUCTS, args[1].numel() * args[2].shape[-1]
    if name == "convolution":
        image, weight, transposed = args[0], args[1], args[6]
        pixels = (image if transposed else output).shape[2:].numel()
        return PRODUCTS, image.shape[0] * weight.numel() * pixels
    if name.startswith("_scaled_dot_product") and not name.endswith("_math"):
        query, key, value = args[:3]
        rows = math.prod(query.shape[:-1])
        return PRODUCTS, rows * key.shape[-2] * (query.shape[-1] + value.shape[-1])
    if name in ("native_layer_norm", "native_group_norm"):
        return NORMS, (4 + _is_affine(args)) * args[0].numel()
    if "batch_norm" in name:
        return NORMS, (1 + _is_affine(args)) * args[0].numel()
    if name in ("upsample_bilinear2d", "grid_sampler_2d"):
        return RESIZING, 4 * output.numel()
    if name == "upsample_linear1d":
        return RESIZING, 2 * output.numel()
    if name == "upsample_nearest2d":
        return RESIZING, output.numel()
    return PRODUCTS, 0


def _is_affine(args: tuple) -> bool:
    """Whether a norm with these arguments has a learned scale."""
    return any(isinstance(x, Tensor) for x in args[1:3])


def _early_predictions(decoder: MultiScaleMaskedTransformerDecoder, pixels: DecodedPixels) -> int:
    """Products of predictions before the last that inference leaves out.

    All classes, and the masks off the tokens that the next layer looks at.
    """
    batch, channels, height, width = pixels.mask_features.shape
    queries = batch * decoder.query_feat.num_embeddings
    layers = len(decoder.transformer_cross_attention_layers)
    tokens = [pixels.levels[i % len(pixels.levels)].feat.shape[1] for i in range(layers)]
    masks = channels * (layers * height * width - sum(tokens))
    return queries * (masks + layers * decoder.class_embed.weight.numel())
