"""The references, which work piece by piece: the pieces do not show in the results."""

import pytest
import torch
from op_inputs import INPUTS, knn_inputs

from aff_seg.ops import reference


@pytest.mark.parametrize("name", INPUTS)
def test_chunks(name, monkeypatch):
    leaves, given = INPUTS[name]()
    whole = getattr(reference, name)(**leaves, **given)
    monkeypatch.setattr(reference, "_CHUNK_ELEMENTS", 5000)
    calls = []
    weighted_sum = reference._weighted_sum
    monkeypatch.setattr(
        reference, "_weighted_sum", lambda *args: calls.append(args) or weighted_sum(*args)
    )
    torch.testing.assert_close(getattr(reference, name)(**leaves, **given), whole)
    assert name == "shepard_interpolate" or len(calls) > 1


def test_knn_in_chunks_and_on_shared_positions(monkeypatch):
    _, given = knn_inputs(batch=1, queries=40, count=30, k=5)
    whole = reference.knn(**given)
    monkeypatch.setattr(reference, "_CHUNK_ELEMENTS", 64)
    for batch in (1, 3):
        query, database = (given[key].expand(batch, -1, -1) for key in ("query", "database"))
        parts = reference.knn(query, database, 5)
        assert torch.equal(parts[0], whole[0].expand(batch, -1, -1))
        assert torch.equal(parts[1], whole[1].expand(batch, -1, -1))


def _scattered(kind, count):
    points = torch.randint(0, 40, (count, 2)).float()
    if kind == "one spot":
        points[:] = 7
    elif kind == "line":
        points[:, 1] = 0
    elif kind == "outlier":
        points[0] = 1e5
    elif kind == "fractions":
        points = points / 3 - 20
    return points[None]


@pytest.mark.parametrize("points", ["grid", "one spot", "line", "outlier", "fractions"])
@pytest.mark.parametrize("queries", ["grid", "one spot", "outlier"])
def test_knn_in_tiles_is_exact(points, queries, monkeypatch):
    query, database = _scattered(queries, 300), _scattered(points, 120)
    want = reference.knn(query, database, 5)
    monkeypatch.setattr(reference, "_BRUTE_FORCE_PAIRS", 0)
    monkeypatch.setattr(reference, "_TILE_SIDE", 3)
    got = reference.knn(query, database, 5)
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


def test_knn_of_a_thin_strip_takes_few_tiles(monkeypatch):
    calls = []
    brute_force = reference._knn_brute_force
    monkeypatch.setattr(
        reference, "_knn_brute_force", lambda *args: calls.append(args) or brute_force(*args)
    )
    strip = torch.stack((torch.arange(4000.0), torch.zeros(4000)), -1)[None]
    index, _ = reference.knn(strip, strip, 3)
    assert index[0, 7].tolist() == [7, 6, 8]
    assert 1 < len(calls) < 600
