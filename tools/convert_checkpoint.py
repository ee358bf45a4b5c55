"""Write the weights of a checkpoint as safetensors: the model alone, nothing that could run."""

import argparse
import os

import safetensors.torch
import torch

from aff_seg.cli import plain_errors
from aff_seg.engine.checkpoint_file import atomic_open, check_weights_exist, read_checkpoint
from aff_seg.errors import UserError

PROGRAM = "convert_checkpoint.py"


def convert(source: str, target: str, *, half: bool) -> None:
    """Write the weights of ``source`` to ``target``.

    Args:
        source: a checkpoint of training, or safetensors.
        target: path of the safetensors file.
        half: store floating point weights in 16 bits; loading turns them back into 32.
    """
    check_weights_exist(source)
    weights = read_checkpoint(source)["model"]
    kept = {}
    for name, value in weights.items():
        shrink = half and value.dtype == torch.float32
        kept[name] = (value.half() if shrink else value).contiguous()
    try:
        with atomic_open(target) as file:
            file.write(safetensors.torch.save(kept))
    except OSError as error:
        raise UserError(f"Cannot write {target}: {error.strerror}.") from error
    print(f"{target}: {len(kept)} tensors, {os.path.getsize(target) / 1e6:.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", help="checkpoint (.pth or .safetensors)")
    parser.add_argument("target", help="safetensors file to write")
    parser.add_argument("--half", action="store_true", help="store the weights in 16 bits")
    args = parser.parse_args()
    with plain_errors(PROGRAM):
        convert(args.source, args.target, half=args.half)


if __name__ == "__main__":
    main()
