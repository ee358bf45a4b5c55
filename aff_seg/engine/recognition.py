"""What a file of weights is, and its names made those of a model.

Published classification files have the backbone's names without a prefix, and a classifier: a norm
and a linear layer. Neither is in a segmentation model, whose backbone has a norm for each stage.
"""

import enum
from dataclasses import dataclass

from detectron2.modeling import Backbone
from torch import Tensor, nn

BACKBONE, HEAD = "backbone.", "sem_seg_head."
# What AFF's names begin with: in a file of it alone, in a segmentation model, in one of Detectron2.
_PREFIXES = ("", BACKBONE, f"{BACKBONE}bottom_up.")
# Names that only AFF has, and the classifier of a classification file.
_EMBEDDING, _IMPORTANCE = "patch_embed.proj1.weight", "layers.0.prob_net.weight"
_CLASSIFIER = ("norm.", "head.")
_CLASSES, _QUERIES = f"{HEAD}predictor.class_embed.weight", f"{HEAD}predictor.query_feat.weight"
#: Published variants by the channels of their stages. A fifth or a quarter of the tokens is no
#: matter of weights.
VARIANTS = {
    (32, 128, 256, 384): "mini",
    (64, 128, 256, 512): "tiny",
    (96, 192, 384, 768): "small",
    (128, 256, 512, 1024): "base",
}


class Kind(enum.Enum):
    """Of files of weights."""

    CLASSIFICATION = "AFF classification file"
    BACKBONE = "AFF backbone"
    SEGMENTATION = "AFF segmentation file"
    DETECTRON2 = "model of Detectron2 with AFF"
    OTHER_BACKBONE = "segmentation file with another backbone"
    OTHER = "file of another model"


@dataclass(frozen=True)
class Recognised:
    """What weights are of.

    Attributes:
        kind: of file.
        variant: "mini", "tiny", "small", "base", or None for other sizes.
        classes: that it tells apart, without "no object"; None for a backbone.
        queries: of a segmentation file.
    """

    kind: Kind
    variant: str | None = None
    classes: int | None = None
    queries: int | None = None

    def __str__(self) -> str:
        parts = [self.kind.value]
        if self.kind not in (Kind.OTHER, Kind.OTHER_BACKBONE):
            parts.append(f"AFF-{self.variant.capitalize()}" if self.variant else "sizes of its own")
        if self.classes is not None:
            parts.append(f"{self.classes} classes")
        if self.queries is not None:
            parts.append(f"{self.queries} queries")
        return ", ".join(parts)


def recognise(weights: dict[str, Tensor]) -> Recognised:
    """Tell what weights are of, by names and shapes."""
    prefix = _prefix(weights)
    variant = None if prefix is None else _variant(weights, prefix)
    if _QUERIES in weights:
        kind = Kind.OTHER_BACKBONE if prefix is None else Kind.SEGMENTATION
        rows = _rows(weights, _CLASSES)
        classes = None if rows is None else rows - 1  # without "no object"
        return Recognised(kind, variant, classes, _rows(weights, _QUERIES))
    if prefix is None:
        return Recognised(Kind.OTHER)
    if prefix == "" and any(name.startswith(_CLASSIFIER) for name in weights):
        return Recognised(Kind.CLASSIFICATION, variant, _rows(weights, "head.weight"))
    alone = all(name.startswith(prefix) for name in weights)
    return Recognised(Kind.BACKBONE if alone else Kind.DETECTRON2, variant)


def _prefix(weights: dict[str, Tensor]) -> str | None:
    """What AFF's names begin with; None if they are not there."""
    for prefix in _PREFIXES:
        if {prefix + _EMBEDDING, prefix + _IMPORTANCE} <= set(weights):
            return prefix
    return None


def _variant(weights: dict[str, Tensor], prefix: str) -> str | None:
    names = [f"{prefix}layers.{i}.blocks.0.norm1.weight" for i in range(4)]
    return VARIANTS.get(tuple(_rows(weights, name) for name in names))


def _rows(weights: dict[str, Tensor], name: str) -> int | None:
    """First size of a weight; None where it is not there or a single number."""
    return weights[name].shape[0] if name in weights and weights[name].dim() else None


def segmentation_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names of a segmentation model; a classifier is left out."""
    return backbone_alone(weights) if _prefix(weights) == "" else weights


def backbone_alone(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Only the weights of the backbone, under the names of a segmentation model."""
    prefix = _prefix(weights)
    if prefix is None:
        return {name: value for name, value in weights.items() if name.startswith(BACKBONE)}
    named = {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}
    return {BACKBONE + n: w for n, w in named.items() if not n.startswith(_CLASSIFIER)}


def left_out(weights: dict[str, Tensor], taken: dict[str, Tensor]) -> list[str]:
    """Names of the weights that are not in ``taken``, under whatever names there."""
    kept = {id(value) for value in taken.values()}
    return [name for name, value in weights.items() if id(value) not in kept]


def names_of(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names of ``model``, if they are of its backbone by another prefix.

    Classification files have none; models that wrap their backbone have a longer one. The prefix
    is that of the part of the model of which most names and shapes fit, exactly; all names get
    it, so nothing can land outside. What is not of the backbone is left out then. Where names fit
    best as they are, they stay.
    """
    state = model.state_dict()

    def fitting(named: dict[str, Tensor]) -> int:
        return sum(n in state and state[n].shape == w.shape for n, w in named.items())

    own = backbone_alone(weights) or weights
    bare = {name.removeprefix(BACKBONE): value for name, value in own.items()}
    choices = [weights]
    for name, part in model.named_modules():
        if isinstance(part, Backbone):
            prefix = f"{name}." if name else ""
            choices.append({prefix + key: value for key, value in bare.items()})
    return max(choices, key=fitting)
