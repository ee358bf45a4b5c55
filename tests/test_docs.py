"""README.md and the pages of docs/: they run as they are written, and their links lead somewhere.

Blocks of a page run one after the other in one folder that looks like the root of the project:
``python`` in one process, ``sh`` with bash. ``yaml`` is written to the file that its first line
names. ``text`` is what the block before it prints. Blocks whose fence says "not run" are left, and
by the quick tests those that say "slow".
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from aff_seg import ops

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"^```(\w+)(?: (not run|slow))?\n(.*?)^```$", re.M | re.S)
MARK = "=== block "
QUICK = ("operators", "python", "token_figure")
TUTORIALS = (*QUICK, "own_data", "mask_rcnn", "clusters")


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
    done = subprocess.run(
        [sys.executable, "-c", program_of(blocks)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    parts = re.split(rf"^{MARK}\d+\n", done.stdout, flags=re.M)[1:]
    assert len(parts) == len(blocks)
    for number, (language, text) in enumerate(blocks):
        if language == "text":
            assert text in parts[number - 1], f"{text}\n--- but:\n{parts[number - 1]}"


@pytest.mark.parametrize("name", QUICK)
def test_a_tutorial_does_what_it_shows(name, workspace):
    run(blocks_of(ROOT / "docs" / f"{name}.md", without=("not run", "slow")), workspace)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(not ops.NATIVE, reason="the references cannot be compiled")
@pytest.mark.parametrize("name", TUTORIALS)
def test_a_whole_tutorial_does_what_it_shows(name, workspace):
    run(blocks_of(ROOT / "docs" / f"{name}.md"), workspace)
    if name == "own_data":
        (scores,) = json.loads((workspace / "output/own/score/results.json").read_text()).values()
        assert scores["segm"]["AP"] > 10


def test_the_readme_segments_a_picture(workspace):
    """The commands that download, or take minutes, are tested elsewhere."""
    blocks = blocks_of(ROOT / "README.md")
    shown = [(kind, text) for kind, text in blocks if kind == "python" or "demo/demo.py" in text]
    assert len(shown) == 3
    run(shown, workspace)
    assert (workspace / "output" / "pictures" / "scene_tokens.png").is_file()


def test_the_readme_is_one_page_and_names_every_other():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 125
    for page in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{page.name})" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere_and_pictures_are_small(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if target.startswith("https://"):
            continue
        path = page.parent / target
        assert path.exists(), f"{page.name}: {target}"
        if path.suffix == ".png":
            assert path.stat().st_size < 300_000, target


def test_every_tutorial_is_run():
    shown = {p.stem for p in PAGES if re.search("^```python", p.read_text(), re.M)}
    assert shown - {"README"} <= set(TUTORIALS)
