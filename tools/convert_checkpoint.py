"""Recognise a file of weights, say how well it covers a model, and write its tensors alone.

    python tools/convert_checkpoint.py aff_tiny.pth backbone.safetensors
    python tools/convert_checkpoint.py model_final.pth model.safetensors --half
    python tools/convert_checkpoint.py model_final.pth backbone.pth --part backbone

SOURCE may be a published AFF file, of ImageNet classification or of segmentation, a pickle of
Detectron2 (.pkl), or a checkpoint of a training here. TARGET is a file for MODEL.WEIGHTS;
classification files become one of a backbone, whose names begin with "backbone.". Nothing but
tensors is read or written, so no code of a file runs.
"""

import argparse
import os
import re
from dataclasses import dataclass, replace

import safetensors.torch
import torch
from detectron2.modeling import META_ARCH_REGISTRY
from tabulate import tabulate
from torch import Tensor, nn

from aff_seg.atomic_file import atomic_open
from aff_seg.cli import plain_errors
from aff_seg.config_files import config_folder
from aff_seg.engine.checkpoint import Match, compare, some
from aff_seg.engine.checkpoint_file import check_weights_exist, read_checkpoint
from aff_seg.engine.recognition import (
    BACKBONE,
    Kind,
    Recognised,
    backbone_alone,
    left_out,
    names_of,
    recognise,
    segmentation_names,
)
from aff_seg.errors import UserError, write_errors
from aff_seg.setup_cfg import load_cfg

PROGRAM = "convert_checkpoint.py"
SUFFIXES = (".safetensors", ".pth")
PARTS = ("all", "backbone")
# Where a published file of so many classes belongs; a backbone belongs anywhere.
FOLDERS = {
    150: "ade20k/semantic",
    80: "coco/instance",
    8: "cityscapes/instance",
    19: "cityscapes/panoptic",
    133: "coco/panoptic",
    100: "ade20k/instance",
}
ANY_FOLDER = "cityscapes/panoptic"
# Names shown of each kind of mismatch.
SHOWN = 8


@dataclass(frozen=True)
class Coverage:
    """How weights cover a model, or its backbone if they are of one.

    Attributes:
        match: names that matched or not.
        parameters: how many numbers the model learns, by name.
    """

    match: Match
    parameters: dict[str, int]

    def table(self) -> str:
        """Counts of keys and share of the parameters that matched, module by module."""
        match = self.match
        names = (*match.matched, *match.missing, *match.reshaped, *match.unexpected)
        rows = [self._row(module, module) for module in sorted({_module(name) for name in names})]
        headers = ("module", "matched", "missing", "wrong shape", "unexpected")
        headers = (*headers, "parameters", "share")
        alignment = ("left", *["right"] * (len(headers) - 1))
        rows.append(self._row("total", None))
        return tabulate(rows, headers=headers, colalign=alignment, disable_numparse=True)

    def mismatches(self) -> list[str]:
        """A line for each kind of mismatch, with some names."""
        lines = []
        for what, names in (
            ("missing", self.match.missing),
            ("wrong shape", self.match.reshaped),
            ("unexpected", self.match.unexpected),
        ):
            if names:
                lines.append(f"{what}: {some(names, SHOWN)}")
        return lines

    def _row(self, title: str, module: str | None) -> tuple:
        def inside(names: list[str]) -> list[str]:
            return [name for name in names if module in (None, _module(name))]

        match = self.match
        lists = (match.matched, match.missing, match.reshaped, match.unexpected)
        matched, missing, reshaped, unexpected = (inside(names) for names in lists)
        found, total = (
            sum(self.parameters.get(name, 0) for name in names)
            for names in (matched, (*matched, *missing, *reshaped))
        )
        counts = (len(matched), len(missing), len(reshaped), len(unexpected))
        share = f"{1000 * found // total / 10}%" if total else ""  # 100% only if it is all
        return (title, *counts, f"{found} of {total}", share)


def _module(name: str) -> str:
    """Row of the table that a key belongs to, such as "backbone.layers.2"."""
    name = re.sub(r"^backbone\.norm\d\.", "backbone.norms.", name)
    length = 3 if name.startswith("backbone.layers.") else 2
    return ".".join(name.split(".")[:-1][:length]) or name


def convert(
    source: str, target: str, *, part: str = "all", config_file: str = "", half: bool = False
) -> None:
    """Write weights of ``source`` to ``target``, and print what they are and cover.

    Args:
        source: file of weights.
        target: file to write, .safetensors or .pth.
        part: "all", or "backbone" alone.
        config_file: config of the model to compare with; that of the published model if empty.
        half: store floating point weights in 16 bits; loading turns them back into 32.

    Raises:
        UserError: a file cannot be read or written, has no such part, or does not fit the config.
    """
    if not target.endswith(SUFFIXES):
        raise UserError(f"{target} must end in {' or '.join(SUFFIXES)}, which say what to write.")
    check_weights_exist(source)
    if os.path.realpath(source) == os.path.realpath(target):
        raise UserError(f"{target} is the file to read; give another name to write to.")
    checkpoint = read_checkpoint(source)
    weights, rest = checkpoint["model"], sorted(str(key) for key in checkpoint if key != "model")
    found = recognise(weights)
    besides = f"; left out: {', '.join(rest)}" if rest else ""
    print(f"{source}: {_container(checkpoint)}{found}{besides}")
    model = _model(config_file or _published_config(found))
    kept = segmentation_names(weights)
    if model is not None:
        kept = names_of(model, kept)
    if dropped := left_out(weights, kept):
        print(f"Not of this model, left out: {some(dropped, SHOWN)}")
    if part == "backbone" and model is None:
        kept = backbone_alone(kept)
    elif part == "backbone":
        kept = {name: value for name, value in kept.items() if name.startswith(BACKBONE)}
    if not kept:
        raise UserError(
            f"{source} has no weights of a backbone (names that begin with {BACKBONE!r}); give "
            "--config-file of the model that it is for, or leave --part backbone out."
            if weights
            else f"{source} has no weights at all; take another file."
        )
    if model is None:
        print("No published model to compare with: give --config-file to see what it covers.")
    else:
        match = compare(model.state_dict(), kept)
        _print_coverage(match, model)
        if config_file and not match.fits:
            raise UserError(f"{source} does not fit the model of {config_file}; nothing written.")
    if half:
        kept = {name: _half(name, value) for name, value in kept.items()}
    # With memory of their own, as both formats want.
    own = {"memory_format": torch.contiguous_format}
    _write(target, {name: value.clone(**own) for name, value in kept.items()})
    print(f"{target}: {len(kept)} tensors, {os.path.getsize(target) / 1e6:.1f} MB")


def _container(checkpoint: dict) -> str:
    """What a file is besides its weights, in words before those for them."""
    if "__author__" in checkpoint:
        return f"pickle for Detectron2 by {checkpoint['__author__']}, "
    if "trainer" in checkpoint or "optimizer" in checkpoint:
        return "checkpoint of a training, "
    return ""


def _published_config(found: Recognised) -> str:
    """Config of the published model that a file is of, or empty."""
    folder = ANY_FOLDER if found.kind in (Kind.CLASSIFICATION, Kind.BACKBONE) else None
    if found.kind is Kind.SEGMENTATION:
        folder = FOLDERS.get(found.classes)
    if found.variant is None or folder is None:
        return ""
    return str(config_folder() / folder / f"aff_{found.variant}.yaml")


def _model(config_file: str) -> nn.Module | None:
    """The model of a config, on the CPU; None without a config."""
    if not config_file:
        return None
    cfg = load_cfg(config_file)
    return META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)


def _print_coverage(match: Match, model: nn.Module) -> None:
    if match.backbone_alone:
        missing = [name for name in match.missing if name.startswith(BACKBONE)]
        match = replace(match, missing=missing)
        print("A backbone alone: in a model the head starts from scratch.")
    coverage = Coverage(match, {name: p.numel() for name, p in model.named_parameters()})
    print("\n".join((coverage.table(), *coverage.mismatches())))


def _half(name: str, value: Tensor) -> Tensor:
    """A tensor in 16 bits, if it is in 32."""
    if value.dtype != torch.float32:
        return value
    half = value.half()
    if not torch.equal(half.isinf(), value.isinf()):
        raise UserError(f"{name} has numbers too large for 16 bits; leave --half out.")
    return half


def _write(target: str, weights: dict[str, Tensor]) -> None:
    """Write a file in one step."""
    with write_errors(target), atomic_open(target) as file:
        if target.endswith(".safetensors"):
            file.write(safetensors.torch.save(weights, {"format": "pt"}))
        else:
            torch.save({"model": weights}, file)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="file of weights: .pth, .safetensors or .pkl")
    parser.add_argument("target", help="file to write; its suffix, .safetensors or .pth, decides")
    parser.add_argument(
        "--part", choices=PARTS, default="all", help="what to write (default: all there is)"
    )
    parser.add_argument(
        "--config-file",
        default="",
        metavar="F",
        help="config of the model that the weights are for, path or name (default: the published "
        "one they fit)",
    )
    parser.add_argument("--half", action="store_true", help="store the weights in 16 bits")
    args = parser.parse_args()
    with plain_errors(PROGRAM):
        convert(
            args.source,
            args.target,
            part=args.part,
            config_file=args.config_file,
            half=args.half,
        )


if __name__ == "__main__":
    main()
