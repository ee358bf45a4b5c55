"""From nothing to a trained, evaluated, visible result on drawn shapes: `make demo`.

Runs the same commands a user would type, shows them, and ends with the scores and the paths of
the pictures.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
CONFIG = "configs/quick/shapes_demo.yaml"
WEIGHTS = "demo/aff_shapes.safetensors"
OUTPUT = "output/demo"
PICTURES = 6


def run(step: str, *command: str, data_root: str) -> None:
    """Run one command of the project, its output in plain sight; stop where it fails."""
    print(
        f"\n=== {step}\n$ DETECTRON2_DATASETS={data_root} python {shlex.join(command)}", flush=True
    )
    env = {**os.environ, "DETECTRON2_DATASETS": data_root, "PYTHONUNBUFFERED": "1"}
    # glibc then keeps freed memory instead of handing it back to the system at every step.
    env.update(MALLOC_MMAP_MAX_="0", MALLOC_TRIM_THRESHOLD_=str(1 << 33))
    result = subprocess.run([sys.executable, *command], cwd=REPO, env=env, check=False)
    if result.returncode:
        sys.exit(f"make demo stopped: this step ended with status {result.returncode}.")


def pictures(step: str, weights: str, out: str, count: int, data_root: str) -> str:
    """Segment some held-out images; returns the paths of the pictures, a line each."""
    images = sorted((REPO / data_root / "cityscapes/leftImg8bit/val").glob("*/*.png"))[:count]
    names = [str(image.relative_to(REPO)) for image in images]
    command = ["demo/demo.py", "--config-file", CONFIG, "--weights", weights, "--input", *names]
    shutil.rmtree(REPO / out, ignore_errors=True)
    run(step, *command, "--output", out, "--tokens", data_root=data_root)
    made = sorted((REPO / out).glob("*.png"))
    return "\n".join(f"  {path.relative_to(REPO)}" for path in made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="two minutes: fewer images and steps")
    fast = parser.parse_args().fast
    data_root = "datasets/shapes_demo_fast" if fast else "datasets/shapes_demo"
    train, val, steps = (40, 8, 10) if fast else (400, 60, 150)
    start = time.perf_counter()

    shapes = ["datasets/make_shapes.py", "--layout", "cityscapes", "--root", data_root]
    sizes = ["--train", str(train), "--val", str(val), "--size", "128", "256", "--seed", "0"]
    run("1/4 Draw a dataset of shapes", *shapes, *sizes, data_root=data_root)

    first = pictures("2/4 A first look", WEIGHTS, f"{OUTPUT}/before", 1, data_root)
    print(f"First pictures after {time.perf_counter() - start:.0f} s:\n{first}")

    train_net = ["train_net.py", "--config-file", CONFIG, "OUTPUT_DIR", OUTPUT]
    step = f"3/4 Go on training for {steps} steps, then score {val} held-out images"
    run(step, *train_net, "SOLVER.MAX_ITER", str(steps), data_root=data_root)

    final = f"{OUTPUT}/model_final.pth"
    after = pictures("4/4 Pictures", final, f"{OUTPUT}/pictures", PICTURES, data_root)

    results = json.loads((REPO / OUTPUT / "results.json").read_text(encoding="utf-8"))
    (scores,) = results.values()
    print(f"\n=== Done in {time.perf_counter() - start:.0f} s")
    print(
        f"PQ {scores['panoptic_seg']['PQ']:.1f}   AP {scores['segm']['AP']:.1f}   "
        f"mIoU {scores['sem_seg']['IoU']:.1f}   on {val} held-out images"
    )
    print(f"What the model finds, and (_tokens) where each stage kept its tokens:\n{after}")
    print(f"Training curves:\n  {OUTPUT}/curves.png")


if __name__ == "__main__":
    main()
