"""`make bench`: its short form, its arithmetic, and what it compares the operators with."""

import importlib
import json
import os
import subprocess
import sys
import time
from contextlib import closing, nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from aff_seg import ops
from aff_seg.cuda_graph import captured

TOOLS = Path(__file__).parents[1] / "tools"
# Where there is a GPU, too, the short form is tested on the CPU.
NO_GPU = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}


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
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=NO_GPU)
    assert done.returncode == 0, done.stderr
    assert output.with_suffix(".png").stat().st_size > 10_000
    assert "TARGETS" in output.with_suffix(".txt").read_text()
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


def test_a_slow_way_leaves_its_turns_to_the_others(load):
    measure = load("bench.measure")

    def way(seconds: float) -> object:
        def run(memory: bool) -> dict:
            time.sleep(seconds)
            return {"": measure.Sample(seconds, None)}

        return run

    figures, _ = measure.take_turns({"slow": way(0.02), "fast": way(0.0)}, 9, 60, 0.03)
    assert (figures["slow"][""].runs, figures["fast"][""].runs) == (2, 9)


def test_an_error_of_one_way_is_its_reason(load):
    measure, rows = load("bench.measure"), load("bench.rows")

    def broken() -> object:
        raise RuntimeError("no such thing\nat all")

    ways = {"ours": lambda memory: {"": measure.Sample(2.0, None)}, "b": measure.lazily(broken)}
    figures, reasons = measure.take_turns(ways, 1, 60)
    assert reasons == {"b": "no such thing"}
    ours, failed = rows.make_rows("section", (8, 16), figures, reasons, lambda _: "it")
    assert ours.seconds == 2.0 and not ours.failed
    assert failed.seconds is None and failed.failed and failed.way == "b"
    assert "FAILED: no such thing" in rows.table([ours, failed])


def test_peak_memory_is_that_of_the_call(load):
    measure = load("bench.measure")
    cpu = torch.device("cpu")
    for size in (64, 16):
        way = measure.single(lambda size=size: torch.ones(size << 18).sum(), cpu)
        peak = way(True)[""].peak / 2**20
        assert size - 1 < peak < size + 8


class FakeGPU:
    """The part of ``torch.cuda`` that clock and graph use, on the CPU; keeps the order of calls."""

    def __init__(self, monkeypatch):
        self.calls = []
        self.now = 0.0
        gpu = self

        class Event:
            def __init__(self, enable_timing: bool):
                assert enable_timing

            def record(self) -> None:
                gpu.now += 1.5
                self.time = gpu.now
                gpu.calls.append("record")

            def synchronize(self) -> None:
                gpu.calls.append("wait")

            def elapsed_time(self, end: "Event") -> float:
                return end.time - self.time

        class Graph:
            def replay(self) -> None:
                gpu.calls.append("replay")

        stream = SimpleNamespace(wait_stream=lambda other: None)
        names = {
            "Event": Event,
            "CUDAGraph": Graph,
            "graph": lambda graph: nullcontext(),
            "Stream": lambda: stream,
            "current_stream": lambda: stream,
            "stream": lambda stream: nullcontext(),
            "get_device_properties": lambda device: SimpleNamespace(L2_cache_size=1 << 10),
            "synchronize": lambda device=None: self.calls.append("synchronize"),
            "_sleep": lambda cycles: self.calls.append("sleep"),
            "memory_allocated": lambda device: 100,
            "max_memory_allocated": lambda device: 164,
            "reset_peak_memory_stats": lambda device: self.calls.append("reset"),
        }
        for name, fake in names.items():
            assert hasattr(torch.cuda, name)
            monkeypatch.setattr(torch.cuda, name, fake)


def test_a_gpu_is_timed_by_its_events(load, monkeypatch):
    clocks, measure = load("bench.clocks"), load("bench.measure")
    gpu, cpu = FakeGPU(monkeypatch), torch.device("cpu")
    with torch.inference_mode():
        clock = clocks.EventClock(cpu)
    monkeypatch.setattr(measure, "clock", lambda device: clock)
    way = measure.single(lambda: gpu.calls.append("call"), cpu, queued=True)
    assert way(False) == {"": measure.Sample(1.5e-3, None)}
    assert gpu.calls == ["synchronize", "sleep", "record", "call", "record", "wait"]

    gpu.calls.clear()
    watch = measure.Stopwatch(cpu, True)
    watch.lap("a")
    watch.lap("b")
    assert watch.samples == {x: measure.Sample(1.5e-3, 64) for x in "ab"}
    assert gpu.calls.count("reset") == 3 and "sleep" not in gpu.calls


def test_a_captured_call_copies_its_inputs_and_replays(monkeypatch):
    gpu, seen = FakeGPU(monkeypatch), []

    def work(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return x

    given = torch.zeros(3)
    replay = captured(work, given)
    # A few calls to warm up and one to capture, all with the same copy.
    assert len(seen) > 1 and all(x is seen[0] for x in seen) and seen[0] is not given
    assert torch.equal(replay(torch.ones(3)), torch.ones(3))
    assert gpu.calls == ["replay"] and not given.any()
    with pytest.raises(ValueError, match="longer"):
        replay(given, given)


def test_plan_for_a_gpu_makes_its_rows_on_a_cpu_too(load):
    plans, jobs, parts = load("bench.plans"), load("bench.jobs"), load("bench.parts")
    limits = {"flops": 1e12, "bfloat16": 2e12, "bytes": 1e11}
    extent = plans.Extent(("mini",), ((64, 64),), ((64, 64),), 1, False, limits)
    planned = plans.on_gpu(extent)
    # What has targets comes first.
    first = [(job.section, job.what, job.dtype) for job in planned[:3]]
    assert first == [
        ("operators", "all", "bfloat16"),
        ("parts of the model", "AFF-Tiny, backbone alone", "bfloat16"),
        ("AFF-Tiny against transformers", "whole model", "all"),
    ]
    chosen = [job for job in planned if job.what in ("all", "AFF-Mini, whole model")]
    chosen += [job for job in planned if "training" in job.what or "alone" in job.what]
    rows = list(jobs.rows_of(chosen, jobs.inline, time.perf_counter() + 600, lambda _: None))
    measured = {(row.what, row.dtype, row.way) for row in rows if row.seconds}
    operators = [row for row in rows if row.section == "operators"]
    assert all(row.seconds for row in operators)
    rated = [row for row in operators if row.way == "ours"]
    assert all(row.bytes > 0 and row.bytes_share > 0 for row in rated)
    assert all(row.flops_share > 0 for row in rated if not row.what.startswith("knn"))
    attention = next(row.what for row in rated if row.what.startswith("cluster_attention"))
    for dtype in ("float32", "bfloat16"):
        for way in ("ours", "reference", "gather + einsum"):
            assert (attention, dtype, way) in measured
            assert (f"{attention}, forward + backward", dtype, way) in measured
        assert (f"{attention}, backward", dtype, "ours") in measured
        for part in ("backbone", "head", "post-processing", "whole model", "training step"):
            assert (f"AFF-Mini, {part}", dtype, "ours") in measured
    if not torch.cuda.is_available():
        (captured,) = (row for row in rows if row.way == parts.GRAPH)
        assert captured.failed and captured.note and captured.seconds is None


def test_bytes_are_those_of_arguments_results_and_gradients(load):
    recorded, counts = load("bench.recorded"), load("bench.counts")
    cases = recorded.record((64, 64), torch.bfloat16)
    assert {case.operator for case in cases} == set(ops.active_paths())

    def size(tensors: object) -> int:
        return sum(x.numel() * x.element_size() for x in tensors if isinstance(x, torch.Tensor))

    for case in cases:
        results = getattr(ops, case.operator)(*case.args, **case.kwargs)
        result = size(results if isinstance(results, tuple) else [results])
        given = size(case.args)
        assert counts.forward_work(case).bytes == given + result, case.label
        if case.operator != "knn":
            assert case.dtype == torch.bfloat16
            gradients = size(case.args[i] for i in case.learned)
            assert counts.backward_work(case).bytes == given + result + gradients, case.label
            assert counts.backward_work(case).operations >= counts.forward_work(case).operations


def test_jobs_end_in_time_and_do_not_lose_each_other(load):
    jobs = load("bench.jobs")

    def job(make: object, limit: float = 60, **arguments: object) -> object:
        return jobs.Job(make, "section", "it", "8x8", arguments=arguments, limit=limit)

    listed = [
        job(json.loads, s="[1, 2]"),
        job(json.loads, s="no JSON"),
        job(os._exit, status=3),
        job(subprocess.call, limit=1, args=["sleep", "60"]),
        job(json.loads, s="[3]"),
    ]
    with closing(jobs.Helper()) as helper:
        found = list(jobs.rows_of(listed, helper, time.perf_counter() + 600, lambda _: None))
        assert found[:2] == [1, 2] and found[-1] == 3
        assert all(row.failed and row.size == "8x8" for row in found[2:-1])
        notes = [row.note for row in found[2:-1]]
        assert notes[0].startswith("Expecting value")
        assert notes[1:] == ["its process ended with status 3", "not done in 1 s"]
        # Ended for want of time, then not begun.
        late = [job(subprocess.call, args=["sleep", "60"]), job(json.loads, s="[3]")]
        found = list(jobs.rows_of(late, helper, time.perf_counter() + 1, lambda _: None))
    assert [(row.note, row.failed) for row in found] == [(jobs.OUT_OF_TIME, False)] * 2


def test_run_without_time_names_what_is_missing(tmp_path):
    output = tmp_path / "report.json"
    command = [sys.executable, "tools/benchmark.py", "--quick", "--seconds", "0"]
    command += ["--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=NO_GPU)
    assert done.returncode == 0, done.stderr
    rows = json.loads(output.read_text())["rows"]
    assert len(rows) == 4 and {row["note"] for row in rows} == {"not measured: out of time"}
    assert not output.with_suffix(".png").exists()


def test_report_is_whole_after_every_row(load, tmp_path):
    rows, report, targets = load("bench.rows"), load("bench.report"), load("bench.targets")
    head = {"date": "now", "operators": {"knn": "CPU"}}
    limits = {"mm": 1e12, "flops": 1e12, "bytes": 1e11}
    written = report.Report(head, limits, targets.targets, tmp_path / "new" / "report.json")
    for count in (1, 2):
        written.add(rows.Row("section", f"thing {count}", "8x8", "ours", seconds=1.0))
        assert len(json.loads(written.output.read_text())["rows"]) == count
        assert f"thing {count}" in written.output.with_suffix(".txt").read_text()
    assert {path.suffix for path in written.output.parent.iterdir()} == {".json", ".txt"}
    assert "TARGETS" in written.results
    aimless = report.Report(head, limits, targets.training_targets, tmp_path / "report.json")
    assert "TARGETS" not in aimless.results


def test_targets_on_a_gpu_read_the_rows(load):
    rows, targets, parts = load("bench.rows"), load("bench.targets"), load("bench.parts")

    def row(section: str, what: str, way: str, ms: float, dtype: str, **others: float) -> object:
        return rows.Row(section, what, "1024x2048", way, ms / 1e3, dtype=dtype, **others)

    short, exact = "bfloat16", "float32"
    found = [
        row("operators", targets.ATTENTION, "ours", 0.05, short),
        row("operators", f"{targets.ATTENTION}, backward", "ours", 0.15, short),
        row("operators", targets.ATTENTION, "gather + einsum", 1, short, ratio=20, memory_ratio=5),
        row("operators", targets.SEARCH, "ours", 0.4, exact),
        row(parts.PARTS, "AFF-Tiny, backbone alone", "ours", 7.0, short),
        row(parts.PARTS, "AFF-Tiny, backbone alone", parts.GRAPH, 6.0, short),
        row(parts.COMPARISON, "image to panoptic result", parts.THEIRS, 20, exact, ratio=2.0),
    ]
    # 131072 x (4 x 64 x 2 + 6 x 4) bytes in 0.05 ms, of 4e12 a second.
    reached = targets.gpu_targets({"bytes": 4e12}, found, None)
    measured = {x.what: (x.measured, x.verdict) for x in reached if x.measured is not None}
    values = [value for value, _ in measured.values()]
    assert values == pytest.approx([0.3513, 3.0, 20, 0.2, 0.4, 7.0, 6.0, 0.5], rel=1e-3)
    verdicts = [verdict for _, verdict in measured.values()]
    assert verdicts == ["not met", "met", "met", "not met", "not met", "met", "not met", "met"]
    assert len(reached) == 17


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
