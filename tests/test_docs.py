"""The pages run as they are written, show what they do, and name only what there is.

Blocks of a page run one after the other in one folder that looks like the root of the project:
``python`` in one process, ``sh`` with bash. ``yaml`` is written to the file that its first line
names. ``text`` is the end of what a ``python`` block before it prints, or lies within what an
``sh`` block prints. Blocks whose fence says "not run" are left, and by the quick tests those that
say "slow".
"""

import contextlib
import functools
import io
import json
import os
import pkgutil
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from detectron2.config import get_cfg
from PIL import Image

from aff_seg import add_aff_config, ops

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "datasets" / "README.md"])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
BLOCK = re.compile(r"^```(\w+)(?: (not run|slow))?\n(.*?)^```$", re.M | re.S)
MARK = "=== block "
QUICK = ("operators", "python")
TUTORIALS = (*QUICK, "token_figure", "own_data", "mask_rcnn", "clusters")
# Pages whose commands need downloads: only what they name is checked, and see below.
NAMES_ONLY = ("README", "MODEL_ZOO")
# Pictures in docs/ that a page's blocks make anew.
PICTURES = {
    "token_figure": {
        f"scene_{what}.png": f"figures/scene_{what}.png"
        for what in ("tokens", "clusters", "importance")
    },
    "python": {"scene_overlay.png": "scene_overlay.png"},
    "README": {f"scene_{what}.png": f"pictures/scene_{what}.png" for what in ("overlay", "tokens")},
    "own_data": {"own_data.png": "own/pictures/000001000007_overlay.png"},
}


def blocks_of(page, without=("not run",)):
    """(language, text) of the blocks that are run or compared."""
    found = BLOCK.findall(page.read_text())
    return [(language, text) for language, said, text in found if said not in without]


def program_of(blocks):
    """Python that runs the blocks, each after a line with its number."""
    lines = ["import subprocess"]
    for number, (language, text) in enumerate(blocks):
        lines.append(f"print({f'{MARK}{number}'!r}, flush=True)")
        if language == "python":
            lines.append(text)
        elif language == "sh":
            lines.append(f"subprocess.run(['bash', '-euc', {text!r}], check=True)")
        elif language == "yaml":
            name = text.splitlines()[0].removeprefix("# ")
            lines.append(f"open({name!r}, 'w').write({text!r})")
        else:
            assert language == "text", language
    return "\n".join(lines)


@pytest.fixture
def workspace(tmp_path):
    """A folder with all that the root has, where what is written does not stay."""
    folder = tmp_path / "project"
    (folder / "datasets").mkdir(parents=True)
    for name in ("aff_seg", "configs", "demo", "docs", "tools", "train_net.py"):
        (folder / name).symlink_to(ROOT / name)
    for script in (ROOT / "datasets").glob("*.py"):
        (folder / "datasets" / script.name).symlink_to(script)
    commands = folder / ".venv" / "bin"
    commands.mkdir(parents=True)
    for name, module in (("python", ""), ("torchrun", "-m torch.distributed.run ")):
        (commands / name).write_text(f'#!/bin/sh\nexec {sys.executable} {module}"$@"\n')
        (commands / name).chmod(0o755)
    return folder


def run(blocks, folder):
    """Run blocks, and compare what they print with what they say."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("DETECTRON2_DATASETS", None)
    with open(folder / "errors", "w+") as errors:
        done = subprocess.run(
            [sys.executable, "-c", program_of(blocks)],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            check=False,
        )
        errors.seek(0)
        assert done.returncode == 0, f"{done.stdout[-4000:]}\n{errors.read()[-4000:]}"
    parts = re.split(rf"^{MARK}\d+\n", done.stdout, flags=re.M)[1:]
    assert len(parts) == len(blocks)
    for (language, text), (before, _), printed in zip(blocks[1:], blocks, parts, strict=False):
        if language == "text":
            same = text in printed if before == "sh" else f"\n{printed}".endswith(f"\n{text}")
            assert same, f"{text}\n--- but:\n{printed}"


def compare_pictures(name, folder):
    """Those of a page are what its blocks have drawn, but for fewer colours in a smaller file."""
    for kept, made in PICTURES.get(name, {}).items():
        with Image.open(ROOT / "docs" / kept) as old, Image.open(folder / "output" / made) as new:
            assert old.size == new.size
            both = [np.asarray(one.convert("RGB"), dtype=np.int16) for one in (old, new)]
        assert np.abs(both[0] - both[1]).mean() < 2.5, kept


@pytest.mark.parametrize("name", QUICK)
def test_a_tutorial_does_what_it_shows(name, workspace):
    run(blocks_of(ROOT / "docs" / f"{name}.md", without=("not run", "slow")), workspace)
    compare_pictures(name, workspace)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(not ops.NATIVE, reason="the references cannot be compiled")
@pytest.mark.parametrize("name", TUTORIALS)
def test_a_whole_tutorial_does_what_it_shows(name, workspace):
    run(blocks_of(ROOT / "docs" / f"{name}.md"), workspace)
    compare_pictures(name, workspace)
    if name == "own_data":
        (scores,) = json.loads((workspace / "output/own/score/results.json").read_text()).values()
        assert scores["segm"]["AP"] > 10
    if name == "token_figure":
        page = (ROOT / "docs" / "token_figure.md").read_text()
        for row in json.loads((workspace / "output" / "token_curve.json").read_text()):
            told = re.search(rf"^\| {row['share']:g} \| \d+ \| (.*) \|$", page, re.M)[1].split("|")
            scores = [row[metric] for metric in ("PQ", "AP", "mIoU")]
            assert list(map(float, told)) == pytest.approx(scores, abs=1), row


def test_the_readme_segments_a_picture(workspace):
    """The commands that download, or take minutes, are tested elsewhere."""
    blocks = blocks_of(ROOT / "README.md")
    shown = [(kind, text) for kind, text in blocks if kind == "python" or "demo/demo.py" in text]
    assert len(shown) == 3
    run(shown, workspace)
    compare_pictures("README", workspace)


def test_a_wrong_output_would_be_found(tmp_path):
    blocks = [("python", "print(11)"), ("text", "11\n"), ("sh", "echo 11 12"), ("text", "12\n")]
    run(blocks, tmp_path)
    for place, wrong in ((1, "1\n"), (1, "11"), (1, "11\n11\n"), (3, "13\n")):
        changed = [*blocks[:place], ("text", wrong), *blocks[place + 1 :]]
        with pytest.raises(AssertionError, match="but:"):
            run(changed, tmp_path)


def test_the_readme_is_one_page_and_names_every_other():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 125
    for page in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{page.name})" in text


def anchors_of(page):
    """What links to the headings of a page end with."""
    text = re.sub("^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    headings = re.findall("^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere_and_pictures_are_small(page):
    for links in re.findall(r'\]\(([^)\s]+)\)|src="([^"]+)"', page.read_text()):
        target, _, anchor = "".join(links).partition("#")
        if target.startswith("https://"):
            continue
        path = page.parent / target if target else page
        assert path.exists(), target
        assert not anchor or anchor in anchors_of(path), f"{target}#{anchor}"
        if path.suffix == ".png":
            assert path.stat().st_size < 300_000, target


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_files_and_names_are_there(page):
    text = page.read_text()
    folders = "aff_seg|benchmarks|configs|datasets|demo|docs|tests|tools"
    suffixes = "json|md|png|py|safetensors|yaml"
    for path in re.findall(rf"(?<![\w/.])(?:{folders})/[\w./-]*\w\.(?:{suffixes})\b", text):
        assert (ROOT / path).exists(), path
    for name in re.findall(r"(?<![\w/])aff_seg(?:\.\w+)+", text):
        pkgutil.resolve_name(name)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_keys_are_those_of_configs(page):
    cfg = get_cfg()
    add_aff_config(cfg)
    parts = "DATALOADER|DATASETS|INPUT|MODEL|SOLVER|TEST"
    for key in re.findall(rf"(?<![\w./])(?:{parts})(?:\.[A-Z][A-Z0-9_]*)+", page.read_text()):
        functools.reduce(getattr, key.split("."), cfg)


def test_the_defaults_of_keys_are_told():
    cfg = get_cfg()
    add_aff_config(cfg)
    text = (ROOT / "docs" / "training.md").read_text()
    rows = re.findall(r"^\| (`[A-Z].*?) \| (.*?) \|", text, re.M)
    told = {}
    for keys, defaults in rows:
        values = re.findall("`(.*?)`", defaults)
        told |= dict(zip(re.findall("`(.*?)`", keys), map(yaml.safe_load, values), strict=True))
    assert len(told) > 25
    for key, default in told.items():
        assert functools.reduce(getattr, key.split("."), cfg) == default, key


@functools.cache
def help_of(script):
    """What a program prints with ``--help``."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(sys, "argv", [script, "--help"])
        with pytest.raises(SystemExit):
            runpy.run_path(str(ROOT / script), run_name="__main__")
    return printed.getvalue()


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_options_are_those_of_the_programs(page):
    for script, rest in re.findall(r"([\w/]+\.py)\b((?:.*\\\n)*.*)", page.read_text()):
        for option in re.findall(r"(?<=[\s`])--[a-z][a-z-]+", rest.split(" -- ")[0]):
            assert option in help_of(script).replace(",", " ").split(), f"{script} {option}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_targets_are_those_of_the_makefile(page):
    targets = re.findall("^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    for target in re.findall(r"(?:^|`)(?:\w+=\S+ )*make ([a-z-]+)", page.read_text(), re.M):
        assert target in targets


def test_speeds_are_those_measured():
    measured = json.loads((ROOT / "benchmarks" / "cpu_amd_epyc.json").read_text())
    rows = {(row["what"], row["size"], row["way"]): row for row in measured["rows"]}
    page = " ".join((ROOT / "docs" / "results.md").read_text().split())
    for size in ("512x512", "1024x2048"):
        ours, other = (
            rows["image to panoptic result", size, way] for way in ("ours", "Mask2Former Swin-Tiny")
        )
        mine, theirs = (round(row["peak"] / 2**20) for row in (ours, other))
        first, second = f"{ours['seconds']:.2g}", f"{other['seconds']:.3g}"
        ratio = other["seconds"] / ours["seconds"]
        assert f"| {size} | {first} / {mine} | {second} / {theirs} | {ratio:.1f}x |" in page
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert f"AFF-Tiny needs {first} s and {mine} MiB for a panoptic result of {size}" in readme
    assert f"Mask2Former with Swin-Tiny {second} s and {theirs} MiB" in readme
    forward, both = (
        rows[f"AFF-Tiny, backbone{way}", "512x512", "reference"]
        for way in ("", ", forward + backward")
    )
    assert f"{forward['ratio']:.1f} times as fast" in page
    assert f"{both['ratio']:.1f} times forward and backward" in page
    assert f"tokens^{measured['exponent']:.2f}" in page


def test_every_block_is_known_and_every_tutorial_is_run():
    for page in PAGES:
        assert not re.search("^(<<<<<<<|=======|>>>>>>>|@@)", page.read_text(), re.M), page
        fences = re.findall("^```", page.read_text(), re.M)
        assert len(fences) == 2 * len(BLOCK.findall(page.read_text())), page
        languages = {language for language, _ in blocks_of(page, without=())}
        assert languages <= {"python", "sh", "text", "yaml"}, page
        assert not blocks_of(page) or page.stem in (*TUTORIALS, *NAMES_ONLY), page
