"""Data that travels between the parts of the model."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Points:
    """A batch of token sets on one canvas.

    All images of a batch have the same number of tokens N, because every stage keeps a fixed
    share of them.

    Attributes:
        feat: ``(B, N, C)`` features.
        pos: ``(B, N, 2)`` float32 positions, (x, y) in stride-4 pixels of the canvas: whole
            numbers for AFF's tokens, halves may occur for cells of a grid. One frame for every
            stage: nothing is rescaled between levels.
        canvas: (H, W), the stride-4 grid of the padded image.
        importance: ``(B, N)`` learned importance in (0, 1), detached; None where the stage
            does not downsample.
        survivors: ``(B, N')`` indices of the tokens the next stage keeps, ascending; None
            where the stage does not downsample.
        cluster_size: tokens of a cluster, m, each cluster m tokens in a row; None for cells of a
            grid.
    """

    feat: Tensor
    pos: Tensor
    canvas: tuple[int, int]
    importance: Tensor | None = None
    survivors: Tensor | None = None
    cluster_size: int | None = None

    @property
    def pixel_index(self) -> Tensor:
        """``(B, N)`` int64, each token's place in the canvas in raster order, rounded down."""
        x, y = self.pos.long().unbind(-1)
        return y * self.canvas[1] + x
