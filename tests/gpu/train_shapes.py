"""Trains a small model on drawn shapes from scratch, and fails unless its loss falls."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
FOLDER = REPO / "output" / "gpu_check"
CONFIG = "configs/quick/shapes_cityscapes_panoptic.yaml"
# The mean loss of the last quarter of the run over that of the first: at most this.
FALL = 0.8


def train(iterations: int) -> list[float]:
    """Losses of a run."""
    root, output = FOLDER / "shapes", FOLDER / "training"
    shutil.rmtree(output, ignore_errors=True)
    shapes = ["datasets/make_shapes.py", "--layout", "cityscapes", "--root", str(root)]
    shapes += ["--train", "64", "--val", "4", "--size", "128", "256", "--seed", "0"]
    settings = ["SOLVER.MAX_ITER", str(iterations), "OUTPUT_DIR", str(output)]
    settings += ["TEST.EVAL_PERIOD", "0", "DATALOADER.NUM_WORKERS", "4"]
    environment = {**os.environ, "DETECTRON2_DATASETS": str(root)}
    for command in (shapes, ["train_net.py", "--config-file", CONFIG, *settings]):
        done = subprocess.run([sys.executable, *command], cwd=REPO, env=environment, check=False)
        if done.returncode:
            sys.exit(f"{command[0]} ended with status {done.returncode}.")
    rows = (output / "metrics.json").read_text(encoding="utf-8").splitlines()
    return [row["total_loss"] for row in map(json.loads, rows) if "total_loss" in row]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=200)
    iterations = parser.parse_args().iterations
    losses = train(iterations)
    quarter = max(1, len(losses) // 4)
    first, last = (sum(part) / quarter for part in (losses[:quarter], losses[-quarter:]))
    print(f"{iterations} iterations: mean loss of the first quarter {first:.1f}, last {last:.1f}")
    if not last <= FALL * first:
        sys.exit(f"the loss must fall to {FALL:.0%}, it went from {first:.1f} to {last:.1f}")


if __name__ == "__main__":
    main()
