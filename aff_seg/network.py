"""The part of the model that is one graph of tensors, to compile or export."""

from torch import Tensor, nn

from aff_seg.meta_arch import MaskFormer


class Network(nn.Module):
    """From images of one size to logits, without anything that depends on what is in them.

    ``torch.export.export(Network(model), (images,))`` and ``torch.compile(Network(model))`` take
    it as it is, for the size of ``images``. :mod:`aff_seg.inference` makes segments of the logits.

    Args:
        model: in evaluation mode.
    """

    def __init__(self, model: MaskFormer):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Class and mask logits.

        Args:
            images: ``(B, 3, h, w)`` RGB in 0..255, sides multiples of
                ``MODEL.MASK_FORMER.SIZE_DIVISIBILITY``.

        Returns:
            ``(B, Q, K + 1)``; ``(B, Q, h / 4, w / 4)``.
        """
        images = (images - self.model.pixel_mean) / self.model.pixel_std
        outputs = self.model.sem_seg_head(self.model.backbone(images))
        return outputs["pred_logits"], outputs["pred_masks"]
