"""Operations of the operators, counted by hand."""

import torch

from aff_seg.ops.counts import Operations, operations


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, device="meta")


def test_attention_counts_logits_positions_and_sums_over_neighbours_and_blank():
    # 10 tokens, 2 heads of 8; 3 clusters of 4 and the blank token make 13 pairs a token.
    args = (*[zeros(1, 10, 2, 8)] * 3, zeros(1, 10, 2), zeros(1, 10, 3), 4)
    pairs = 10 * 13
    want = Operations(pairs * 2 * (8 + 8 + 5), pairs * (2 * 3 + 11))
    assert operations("cluster_attention", args) == want
    assert want.all == 2 * want.multiply_adds + want.others
    backward = operations("cluster_attention", args, backward=True)
    assert backward.multiply_adds == pairs * 2 * (5 * 8 + 2 * 5)


def test_point_conv_counts_its_network_and_the_outer_products():
    args = (zeros(2, 9, 6), None, zeros(2, 9, 2), zeros(2, 5), zeros(2, 5, 3), 4, zeros(4, 5))
    pairs = 2 * 5 * 3 * 4
    assert operations("point_conv", args).multiply_adds == pairs * 4 * (5 + 6)
    assert operations("point_conv", args, backward=True).multiply_adds == pairs * 4 * 2 * (5 + 6)


def test_interpolations_count_what_they_read():
    shepard = (zeros(1, 9, 6), zeros(1, 9, 2), zeros(1, 7, 2), zeros(1, 7, 4), 3.0)
    assert operations("shepard_interpolate", shepard) == Operations(7 * 4 * 6, 7 * 4 * 10)
    deformable = (
        *(zeros(1, 9, 2, 8), zeros(1, 9, 2), zeros(1, 3, 4, 4, 4)),
        *(zeros(1, 7, 2, 3, 5, 2), zeros(1, 7, 2, 3, 5), 3.0),
    )
    reads = 7 * 2 * 3 * 5 * 4
    assert operations("deformable_points", deformable) == Operations(reads * 8, reads * 10)


def test_a_search_is_not_counted():
    assert operations("knn", (zeros(1, 9, 2), zeros(1, 9, 2), 4)) is None
