"""The whole model: images in, losses or segmentations out.

Shape legend: B images, Q queries, K classes, (H, W) canvas of stride-4 pixels.
"""

import contextlib
from collections.abc import Collection

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.modeling import (
    META_ARCH_REGISTRY,
    Backbone,
    build_backbone,
    build_sem_seg_head,
)
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from aff_seg import inference
from aff_seg.errors import UserError
from aff_seg.inference import InstanceMasks, MaskStrips, PanopticVotes, SemanticScores
from aff_seg.losses import HungarianMatcher, SetCriterion
from aff_seg.structures import Points


@META_ARCH_REGISTRY.register()
class MaskFormer(nn.Module):
    """Segments images with one set of queries, each a class and a mask.

    Args:
        backbone: images to tokens, or feature maps, of several levels.
        sem_seg_head: tokens to ``pred_logits`` and ``pred_masks``.
        criterion: unweighted losses.
        loss_weights: weight of ``loss_ce``, ``loss_mask``, ``loss_dice``.
        pixel_mean, pixel_std: of RGB in 0..255.
        size_divisibility: batches are padded to a multiple of this.
        thing_classes: indices of the classes that are things.
        semantic_on, panoptic_on, instance_on: results to give.
        object_threshold, overlap_threshold: see
            :func:`aff_seg.inference.panoptic_inference`.
        max_detections: most instances per image.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        sem_seg_head: nn.Module,
        criterion: SetCriterion,
        loss_weights: dict[str, float],
        pixel_mean: list[float],
        pixel_std: list[float],
        size_divisibility: int = 32,
        thing_classes: Collection[int] = (),
        semantic_on: bool = True,
        panoptic_on: bool = False,
        instance_on: bool = False,
        object_threshold: float = 0.8,
        overlap_threshold: float = 0.8,
        max_detections: int = 100,
    ):
        super().__init__()
        if not (semantic_on or panoptic_on or instance_on):
            raise UserError(
                "nothing to infer: set one of MODEL.MASK_FORMER.TEST.SEMANTIC_ON, PANOPTIC_ON, "
                "INSTANCE_ON to True"
            )
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        self.criterion = criterion
        self.loss_weights = loss_weights
        self.size_divisibility = size_divisibility
        self.thing_classes = frozenset(thing_classes)
        self.semantic_on, self.panoptic_on, self.instance_on = semantic_on, panoptic_on, instance_on
        self.object_threshold, self.overlap_threshold = object_threshold, overlap_threshold
        self.max_detections = max_detections
        for name, value in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            self.register_buffer(name, torch.tensor(value).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        backbone = build_backbone(cfg)
        mask_former, test = cfg.MODEL.MASK_FORMER, cfg.MODEL.MASK_FORMER.TEST
        loss_weights = {
            "loss_ce": mask_former.CLASS_WEIGHT,
            "loss_mask": mask_former.MASK_WEIGHT,
            "loss_dice": mask_former.DICE_WEIGHT,
        }
        matcher = HungarianMatcher(
            cost_class=loss_weights["loss_ce"],
            cost_mask=loss_weights["loss_mask"],
            cost_dice=loss_weights["loss_dice"],
            num_points=mask_former.TRAIN_NUM_POINTS,
        )
        criterion = SetCriterion(
            num_classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            matcher=matcher,
            no_object_weight=mask_former.NO_OBJECT_WEIGHT,
            num_points=mask_former.TRAIN_NUM_POINTS,
            oversample_ratio=mask_former.OVERSAMPLE_RATIO,
            importance_sample_ratio=mask_former.IMPORTANCE_SAMPLE_RATIO,
        )
        return {
            "backbone": backbone,
            "sem_seg_head": build_sem_seg_head(cfg, backbone.output_shape()),
            "criterion": criterion,
            "loss_weights": loss_weights,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "size_divisibility": mask_former.SIZE_DIVISIBILITY,
            "thing_classes": _thing_classes(cfg),
            "semantic_on": test.SEMANTIC_ON,
            "panoptic_on": test.PANOPTIC_ON,
            "instance_on": test.INSTANCE_ON,
            "object_threshold": test.OBJECT_MASK_THRESHOLD,
            "overlap_threshold": test.OVERLAP_THRESHOLD,
            "max_detections": cfg.TEST.DETECTIONS_PER_IMAGE,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        """Train on or segment a batch.

        Args:
            batched_inputs: a dict per image: ``image`` (3, h, w) RGB in 0..255; in training
                ``instances`` with ``gt_classes`` (n,) and ``gt_masks`` (n, h, w); in inference
                optionally ``height`` and ``width`` of the wanted result.

        Returns:
            in training the weighted losses; else a dict per image with ``sem_seg`` (K, h, w),
            ``panoptic_seg`` (map, segments) and ``instances``, as far as switched on.
        """
        if self.training:
            images = self.preprocess(batched_inputs)
            outputs = self.sem_seg_head(self.backbone(images.tensor))
            return self._weigh(self.criterion(outputs, self._targets(batched_inputs, images)))
        return self.forward_with_tokens(batched_inputs)[0]

    @torch.no_grad()
    def forward_with_tokens(
        self, batched_inputs: list[dict]
    ) -> tuple[list[dict], dict[str, Points]]:
        """Segment a batch and also return the backbone's tokens.

        Returns:
            a dict per image as :meth:`forward` gives; the tokens of every level, "res2" to "res5".
        """
        return self._segment(batched_inputs)

    @torch.no_grad()
    def semantic_scores(self, batched_inputs: list[dict]) -> list[Tensor]:
        """The ``sem_seg`` of every image as :meth:`forward` gives it, and nothing else.

        ``semantic_on`` must be set.
        """
        return [result["sem_seg"] for result in self._segment(batched_inputs, all_kinds=False)[0]]

    def _segment(
        self, batched_inputs: list[dict], *, all_kinds: bool = True
    ) -> tuple[list[dict], dict[str, Points]]:
        images = self.preprocess(batched_inputs)
        tokens = self.sem_seg_head.tokens(self.backbone(images.tensor))
        outputs = self.sem_seg_head(tokens)
        padded = tuple(images.tensor.shape[-2:])
        results = [
            self._postprocess(logits, masks, padded, size, request, all_kinds=all_kinds)
            for logits, masks, size, request in zip(
                outputs["pred_logits"].float(),
                outputs["pred_masks"].float(),
                images.image_sizes,
                batched_inputs,
                strict=True,
            )
        ]
        return results, tokens

    def as_one(self, batched_inputs: list[dict]) -> contextlib.AbstractContextManager:
        """A context in which the losses of parts of a batch add up to those of the batch."""
        return self.criterion.as_one([len(x["instances"]) for x in batched_inputs])

    def preprocess(self, batched_inputs: list[dict]) -> ImageList:
        """Normalise the images and pad them to one size with zeros."""
        images = [x["image"].to(self.device) for x in batched_inputs]
        images = [(image - self.pixel_mean) / self.pixel_std for image in images]
        return ImageList.from_tensors(images, self.size_divisibility)

    def _targets(self, batched_inputs: list[dict], images: ImageList) -> list[dict[str, Tensor]]:
        height, width = images.tensor.shape[-2:]
        targets = []
        for instances in (x["instances"].to(self.device) for x in batched_inputs):
            masks = instances.gt_masks
            padding = (0, width - masks.shape[2], 0, height - masks.shape[1])
            targets.append({"labels": instances.gt_classes, "masks": F.pad(masks, padding)})
        return targets

    def _weigh(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weighted losses; ``loss_ce_3`` has the weight of ``loss_ce``."""
        weighted = {}
        for name, value in losses.items():
            kind = "_".join(name.split("_")[:2])
            weighted[name] = value * self.loss_weights[kind]
        return weighted

    def _postprocess(
        self,
        mask_cls: Tensor,
        mask_pred: Tensor,
        padded: tuple[int, int],
        size: tuple[int, int],
        request: dict,
        *,
        all_kinds: bool = True,
    ) -> dict:
        """Results of one image, or the semantic one, from ``(Q, K + 1)``, ``(Q, H, W)`` logits."""
        height, width = request.get("height", size[0]), request.get("width", size[1])
        if not self.semantic_on:
            mask_cls, mask_pred = self._reachable(mask_cls, mask_pred)
        semantic_alone = not (self.panoptic_on or self.instance_on)
        if semantic_alone:
            strips = MaskStrips(mask_pred, padded)
        else:
            strips = MaskStrips(mask_pred, padded, size, (height, width))
        gather = {}
        if self.semantic_on:
            gather["sem_seg"] = SemanticScores(mask_cls, strips.size)
        if self.panoptic_on and all_kinds:
            gather["panoptic_seg"] = PanopticVotes(mask_cls, strips.size, **self._panoptic_options)
        if self.instance_on and all_kinds:
            gather["instances"] = InstanceMasks(mask_cls, strips.size, **self._instance_options)
        for strip in strips:
            for kind in gather.values():
                kind.add(strip)
        results = {name: kind.result() for name, kind in gather.items()}
        if semantic_alone and (padded != size or size != (height, width)):
            results["sem_seg"] = sem_seg_postprocess(results["sem_seg"], size, height, width)
        return results

    @property
    def _panoptic_options(self) -> dict:
        return {
            "thing_classes": self.thing_classes,
            "object_threshold": self.object_threshold,
            "overlap_threshold": self.overlap_threshold,
        }

    @property
    def _instance_options(self) -> dict:
        things = self.thing_classes if self.panoptic_on else None
        return {"max_detections": self.max_detections, "thing_classes": things}

    def _reachable(self, mask_cls: Tensor, mask_pred: Tensor) -> tuple[Tensor, Tensor]:
        """Only the queries that can appear in a panoptic or instance result, in their order."""
        reach = torch.zeros(len(mask_cls), dtype=torch.bool, device=mask_cls.device)
        if self.panoptic_on:
            reach[inference.confident_queries(mask_cls, self.object_threshold)] = True
        if self.instance_on:
            reach[inference.best_pairs(mask_cls, self.max_detections)[1]] = True
        return mask_cls[reach], mask_pred[reach]

    def semantic_inference(self, mask_cls: Tensor, mask_pred: Tensor) -> Tensor:
        """See :func:`aff_seg.inference.semantic_inference`."""
        return inference.semantic_inference(mask_cls, mask_pred)

    def panoptic_inference(self, mask_cls: Tensor, mask_pred: Tensor) -> tuple[Tensor, list[dict]]:
        """See :func:`aff_seg.inference.panoptic_inference`."""
        return inference.panoptic_inference(mask_cls, mask_pred, **self._panoptic_options)

    def instance_inference(self, mask_cls: Tensor, mask_pred: Tensor) -> Instances:
        """See :func:`aff_seg.inference.instance_inference`; things only if panoptic is on."""
        return inference.instance_inference(mask_cls, mask_pred, **self._instance_options)


def _thing_classes(cfg: CfgNode) -> list[int]:
    """Thing classes of the training (else test) dataset, by its metadata."""
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        metadata = MetadataCatalog.get(name)
        return list(metadata.get("thing_dataset_id_to_contiguous_id", {}).values())
    return []
