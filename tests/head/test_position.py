"""Sine position encoding."""

import math

import torch

from aff_seg.head.position import sine_encoding


def test_layout_and_frequencies():
    pos = torch.tensor([[[0.0, 0.0], [4.0, 8.0], [2.0, 8.0]]])
    code = sine_encoding(pos, 16)
    assert code.shape == (1, 3, 16)
    for token, (x, y) in enumerate(pos[0].tolist()):
        want = []
        for value, extent in ((x, 4), (y, 8)):
            angle = value / (extent + 1e-6) * 2 * math.pi
            angles = [angle / 10000 ** (i / 4) for i in range(4)]
            want += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        torch.testing.assert_close(code[0, token], torch.tensor(want))


def test_an_image_does_not_depend_on_its_batch():
    pos = torch.randint(0, 50, (3, 20, 2)).float()
    assert torch.equal(sine_encoding(pos, 32)[1:2], sine_encoding(pos[1:2], 32))
