"""`make bench`: its short form, its arithmetic, and what it compares the operators with."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from aff_seg import ops

TOOLS = Path(__file__).parents[1] / "tools"


@pytest.fixture
def load(monkeypatch):
    """A function from a name to that module of ``tools``."""
    monkeypatch.syspath_prepend(TOOLS)

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


def test_quick_run_has_every_row(tmp_path):
    output = tmp_path / "out" / "report.json"
    command = [sys.executable, "tools/benchmark.py", "--quick", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert output.with_suffix(".png").stat().st_size > 10_000
    report = json.loads(output.read_text())
    assert {"date", "torch", "transformers", "python", "processor", "threads"} <= set(report)
    assert report["limits"]["flops"] > 0 and report["limits"]["bytes"] > 0

    rows = report["rows"]
    measured = {(row["what"].split(",")[0], row["way"]) for row in rows if row["seconds"]}
    for operator in ops.active_paths():
        assert {(operator, "ours"), (operator, "reference")} <= measured
    assert {("knn", "cKDTree"), ("knn", "cdist + topk")} <= measured
    assert ("cluster_attention", "gather + einsum") in measured
    parts = {row["what"]: row for row in rows if row["way"] == "reference"}
    for part in ("backbone", "head", "post-processing", "whole model"):
        assert parts[f"AFF-Mini, {part}"]["seconds"] > 0
    assert parts["AFF-Mini, backbone, forward + backward"]["memory_ratio"] > 0
    against = [row for row in rows if row["section"] == "AFF-Tiny against transformers"]
    assert {row["way"] for row in against} == {"ours", "Mask2Former Swin-Tiny"}
    assert all(row["seconds"] or row["note"] for row in against)
    assert len(report["targets"]) == 13
    assert {target["verdict"] for target in report["targets"]} == {"not measured"}


def test_exponent_of_a_power_law(load):
    scaling = load("bench.scaling")
    counts = [2**i for i in range(10, 18)]
    noise = [1.05, 0.95] * 4
    seconds = [3e-5 * n**1.2 * e for n, e in zip(counts, noise, strict=True)]
    exponent, factor = scaling.fit_exponent(counts, seconds)
    assert exponent == pytest.approx(1.2, abs=0.02)
    assert factor == pytest.approx(3e-5, rel=0.2)


def test_ways_take_turns_until_patience_ends(load):
    measure = load("bench.measure")
    order = []

    def way(name: str, seconds: float) -> object:
        def run(memory: bool) -> dict:
            order.append((name, memory))
            return {"": measure.Sample(seconds, 7 if memory else None)}

        return run

    def broken(memory: bool) -> dict:
        raise measure.WayError("no room")

    ways = {"a": way("a", 1.0), "b": way("b", 2.0), "c": broken}
    figures, reasons = measure.take_turns(ways, 2, 60)
    assert order == [("a", True), ("b", True)] + [("a", False), ("b", False)] * 2
    assert figures["b"][""] == measure.Figure(2.0, 7, 2)
    assert reasons == {"c": "no room"}
    figures, _ = measure.take_turns({"a": way("a", 1.0)}, 5, 0)
    assert figures["a"][""].runs == 1


def test_peak_memory_is_that_of_the_call(load):
    measure = load("bench.measure")
    cpu = torch.device("cpu")
    for size in (64, 16):
        way = measure.single(lambda size=size: torch.ones(size << 18).sum(), cpu)
        peak = way(True)[""].peak / 2**20
        assert size - 1 < peak < size + 8


def test_targets_compare_with_their_bound(load):
    Target = load("bench.targets").Target
    assert Target("speed", 2.0, True, 2.5).verdict == "met"
    assert Target("speed", 2.0, True, 1.5).verdict == "not met"
    assert Target("memory", 0.7, False, 0.6).verdict == "met"
    assert Target("memory", 0.7, False, None).verdict == "not measured"


def test_other_searches_find_the_same(load):
    instead = load("bench.instead")
    query, database = torch.rand(1, 300, 2), torch.rand(1, 200, 2)
    index, dist = ops.knn(query, database, 4)
    for search in (instead.tree_knn, instead.cdist_knn):
        found, d2 = search(query, database, 4)
        assert torch.equal(found.int(), index)
        torch.testing.assert_close(d2.float(), dist, rtol=1e-3, atol=1e-5)


def test_gathered_attention_is_ours_without_the_blank_token(load):
    instead = load("bench.instead")
    count, heads, dim, m = 45, 2, 8, 8  # the last cluster is short
    q, k, v = torch.randn(3, 1, count, heads, dim)
    # A first channel that only the blank token looks at, and is far below 0 there.
    q[..., 0], k[..., 0] = 1, 0
    blank_k = torch.zeros(heads, dim)
    blank_k[:, 0] = -1e6
    clusters = torch.rand(1, count, -(-count // m)).argsort(-1)[..., :3]
    args = (
        q,
        k,
        v,
        torch.rand(1, count, 2),
        clusters,
        m,
        torch.randn(heads, 5),
        torch.randn(heads),
    )
    got = instead.gathered_attention(*args)
    want = ops.cluster_attention(*args, blank_k.flatten(), torch.randn(heads * dim))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("missing", "installed"), [([], False), (["transformers>=5.0"], True)])
def test_extra_is_installed_where_it_is_missing(load, monkeypatch, tmp_path, missing, installed):
    script, commands = load("setup_env_bench"), load("setup_env_commands").Commands
    said = []
    monkeypatch.setattr(commands, "ask", lambda self, code: missing)
    monkeypatch.setattr(commands, "pip", lambda self, *arguments: said.append(arguments))
    script.main(str(tmp_path))
    assert [call[-1] for call in said] == (missing if installed else [])


def test_a_missing_extra_does_not_stop_the_benchmark(load, monkeypatch, tmp_path, capsys):
    script, commands = load("setup_env_bench"), load("setup_env_commands").Commands
    error = load("setup_env_checks").SetupError

    def fail(self: object, *arguments: str) -> None:
        raise error("no network.")

    monkeypatch.setattr(commands, "ask", lambda self, code: ["transformers>=5.0"])
    monkeypatch.setattr(commands, "pip", fail)
    script.main(str(tmp_path))
    assert "no network. The benchmark goes on" in capsys.readouterr().err
