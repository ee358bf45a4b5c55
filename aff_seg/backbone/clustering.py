"""Balanced clustering along a space-filling path (section 3.1.1 of the paper).

Shape legend: B images, N tokens, m tokens in a cluster, k = ceil(N / m) clusters, R clusters in
a neighbourhood. Positions are whole (x, y) in stride-4 pixels of the canvas (H, W).
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from aff_seg import ops


@dataclass(frozen=True)
class Neighbourhood:
    """Who attends whom: ``clusters`` (B, N, R) of ``m`` consecutive tokens each.

    The readers are there where several blocks need them for their gradients.
    """

    clusters: Tensor
    m: int
    readers: ops.Readers | None = None

    def with_readers(self) -> "Neighbourhood":
        """The same of all N tokens of a stage, and who reads each cluster."""
        count = math.ceil(self.clusters.shape[1] / self.m)
        return replace(self, readers=ops.cluster_readers(self.clusters, count))


def path_order(pos: Tensor, canvas: tuple[int, int], m: int) -> Tensor:
    """Order of tokens along the path, whose consecutive runs of m are the clusters.

    The canvas is cut into about as many patches as there will be clusters; the path visits them
    in serpentine order, and inside a patch moves from the previous patch's centre to the next's.

    Args:
        pos: ``(B, N, 2)`` whole positions.
        canvas: (H, W).
        m: tokens per cluster.

    Returns:
        ``(B, N)`` int64; entry r is the incoming index of the token ranked r. Tokens with equal
        keys keep their incoming order.
    """
    height, width = canvas
    num_clusters = math.ceil(pos.shape[1] / m)
    side = math.sqrt(height * width / num_clusters)
    rows, columns = max(1, round(height / side)), max(1, round(width / side))

    x, y = pos.long().unbind(-1)
    column, row = x * columns // width, y * rows // height
    rank = row * columns + torch.where(row % 2 == 0, column, columns - 1 - column)

    anchors = _anchors(canvas, rows, columns, pos.device)
    point = pos.double()
    before = (point - anchors[rank]).square().sum(-1)
    after = (point - anchors[rank + 2]).square().sum(-1)
    ratio = torch.zeros_like(before) if rows * columns == 1 else before / after
    # Non-negative floats order as their bits do: one integer holds (rank, ratio).
    key = (rank << 32) | ratio.float().contiguous().view(torch.int32).long()
    return key.sort(dim=-1, stable=True).indices


def _anchors(canvas: tuple[int, int], rows: int, columns: int, device: torch.device) -> Tensor:
    """Centres of the patches along the path, (1 + rows * columns + 1, 2) float64.

    The first and the last are extrapolated from their two nearest neighbours.
    """
    height, width = canvas
    x = (torch.arange(columns, dtype=torch.float64, device=device) + 0.5) * width / columns - 0.5
    y = (torch.arange(rows, dtype=torch.float64, device=device) + 0.5) * height / rows - 0.5
    grid = torch.stack((x.expand(rows, -1), y[:, None].expand(-1, columns)), dim=-1)
    grid[1::2] = grid[1::2].flip(1)
    path = grid.reshape(-1, 2)
    if len(path) == 1:
        return path.expand(3, 2)
    return torch.cat((2 * path[:1] - path[1:2], path, 2 * path[-1:] - path[-2:-1]))


def nearest_clusters(pos: Tensor, m: int, count: int) -> Tensor:
    """The ``count`` clusters whose centres are nearest to each token, ties to the lower one.

    A centre is the mean of its members, a fraction. Scaled by a common denominator, centres and
    tokens are whole numbers, and their squared distances compare exactly.

    Args:
        pos: ``(B, N, 2)`` whole positions in path order.
        m: tokens per cluster.
        count: clusters wanted per token.

    Returns:
        ``(B, N, count)`` int32.
    """
    num_tokens = pos.shape[1]
    num_clusters = math.ceil(num_tokens / m)
    last = num_tokens - (num_clusters - 1) * m
    scale = m * last
    total = torch.nn.functional.pad(pos.double(), (0, 0, 0, num_clusters * m - num_tokens))
    total = total.unflatten(1, (num_clusters, m)).sum(2)
    size = torch.full((num_clusters, 1), m, dtype=torch.float64, device=pos.device)
    size[-1] = last
    return ops.knn(pos.double() * scale, total * (scale / size), count)[0]


def cluster_tokens(
    pos: Tensor, canvas: tuple[int, int], m: int, nbhd: int
) -> tuple[Tensor, Neighbourhood]:
    """Cluster a stage's tokens.

    Args:
        pos: ``(B, N, 2)`` whole positions, N > nbhd.
        canvas: (H, W).
        m: tokens per cluster.
        nbhd: tokens wanted in a neighbourhood.

    Returns:
        the order to bring the tokens into, ``(B, N)`` int64, and their neighbourhoods in that
        order.
    """
    order = path_order(pos, canvas, m)
    ordered = pos.gather(1, order[..., None].expand(-1, -1, 2))
    count = min(max(1, round(nbhd / m)), math.ceil(pos.shape[1] / m))
    return order, Neighbourhood(nearest_clusters(ordered, m, count), m)


def cluster_grid(
    canvas: tuple[int, int], m: int, nbhd: int, device: torch.device
) -> tuple[Tensor, Neighbourhood]:
    """:func:`cluster_tokens` of a full canvas in raster order, with B = 1.

    The last 16 results of the process are remembered; each takes about 32 bytes a token.
    """
    pos = grid_positions(canvas, device)
    # While a graph is traced, tensors stand for others, and outside mean nothing.
    if torch.compiler.is_compiling() or type(pos) is not Tensor:
        return cluster_tokens(pos, canvas, m, nbhd)
    return _remembered_grid(canvas, m, nbhd, device)


@lru_cache(maxsize=16)
def _remembered_grid(
    canvas: tuple[int, int], m: int, nbhd: int, device: torch.device
) -> tuple[Tensor, Neighbourhood]:
    # What is remembered may serve training later, so it must not be an inference tensor.
    with torch.inference_mode(False):
        return cluster_tokens(grid_positions(canvas, device), canvas, m, nbhd)


def grid_positions(canvas: tuple[int, int], device: torch.device) -> Tensor:
    """Positions of all pixels of a canvas in raster order, ``(1, H * W, 2)`` float32."""
    height, width = canvas
    y, x = torch.meshgrid(
        torch.arange(height, device=device, dtype=torch.float32),
        torch.arange(width, device=device, dtype=torch.float32),
        indexing="ij",
    )
    return torch.stack((x, y), dim=-1).view(1, -1, 2)


def everyone(pos: Tensor) -> Neighbourhood:
    """Global attention: all N tokens are one cluster, and everyone's neighbourhood."""
    batch, num_tokens, _ = pos.shape
    clusters = torch.zeros(batch, num_tokens, 1, dtype=torch.int32, device=pos.device)
    return Neighbourhood(clusters, num_tokens)
