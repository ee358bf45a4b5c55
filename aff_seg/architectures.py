"""What each of Detectron2's architectures is trained on, gives, and counts its classes by.

A config is theirs where ``INPUT.DATASET_MAPPER_NAME`` is detectron2. Every other is trained by a
mapper of ``aff_seg.data`` and gives what ``MODEL.MASK_FORMER.TEST`` turns on.
"""

from dataclasses import dataclass

from detectron2.config import CfgNode

# Name of Detectron2's mapper.
DETECTRON2 = "detectron2"
# What MaskFormer may give, and the flag of MODEL.MASK_FORMER.TEST that turns it on.
FLAGS = {"sem_seg": "SEMANTIC_ON", "instances": "INSTANCE_ON", "panoptic_seg": "PANOPTIC_ON"}


@dataclass(frozen=True)
class Architecture:
    """One of ``MODEL.META_ARCHITECTURE``.

    Attributes:
        outputs: what it gives: sem_seg, instances (with masks), boxes or panoptic_seg.
        things: part of ``MODEL`` whose ``NUM_CLASSES`` counts the classes of objects, or None.
        stuff: part of ``MODEL`` whose ``NUM_CLASSES`` counts the classes of pixels, or None.
    """

    outputs: frozenset[str]
    things: str | None = None
    stuff: str | None = None


ARCHITECTURES = {
    "GeneralizedRCNN": Architecture(frozenset({"instances"}), things="ROI_HEADS"),
    "RetinaNet": Architecture(frozenset({"boxes"}), things="RETINANET"),
    "SemanticSegmentor": Architecture(frozenset({"sem_seg"}), stuff="SEM_SEG_HEAD"),
    "PanopticFPN": Architecture(
        frozenset({"sem_seg", "instances", "panoptic_seg"}),
        things="ROI_HEADS",
        stuff="SEM_SEG_HEAD",
    ),
}


# One that is not listed: it can be trained, but not scored.
_UNKNOWN = Architecture(frozenset())


def detectron2_architecture(cfg: CfgNode) -> Architecture | None:
    """The entry of ``MODEL.META_ARCHITECTURE``, None where the config is not Detectron2's.

    One without an entry has no outputs.
    """
    name = cfg.MODEL.META_ARCHITECTURE
    if cfg.INPUT.DATASET_MAPPER_NAME != DETECTRON2 or name == "MaskFormer":
        return None
    return ARCHITECTURES.get(name, _UNKNOWN)


def outputs_of(cfg: CfgNode) -> frozenset[str]:
    """What the model of a config gives, see :class:`Architecture`."""
    architecture = detectron2_architecture(cfg)
    if architecture is None:
        test = cfg.MODEL.MASK_FORMER.TEST
        return frozenset(name for name, flag in FLAGS.items() if test[flag])
    if "instances" in architecture.outputs and not cfg.MODEL.MASK_ON:
        return architecture.outputs - {"instances"} | {"boxes"}
    return architecture.outputs
