"""From a config file and ``KEY VALUE`` pairs to a checked config."""

import difflib
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY
from detectron2.utils.file_io import PathManager

from aff_seg.architectures import ARCHITECTURES, DETECTRON2
from aff_seg.config import add_aff_config
from aff_seg.config_files import DETECTRON2_CONFIGS, config_folder
from aff_seg.data import register_custom
from aff_seg.errors import UserError
from aff_seg.existing_config import COUNTERPARTS
from aff_seg.head import TRANSFORMER_DECODER_REGISTRY

BASE_KEY = "_BASE_"
AT_LEAST_ONE = (
    "MODEL.AFF.CLUSTER_SIZE",
    "SOLVER.ACCUMULATE",
    "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.IMS_PER_BATCH",
    "SOLVER.MAX_ITER",
)
PRECISIONS = ("float16", "bfloat16")
CHANNEL_ORDERS = ("RGB", "BGR")
REGISTRIES = {
    "MODEL.META_ARCHITECTURE": META_ARCH_REGISTRY,
    "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY,
    "MODEL.SEM_SEG_HEAD.NAME": SEM_SEG_HEADS_REGISTRY,
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": SEM_SEG_HEADS_REGISTRY,
    "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME": TRANSFORMER_DECODER_REGISTRY,
}


def find_config(name: str | os.PathLike) -> str:
    """The path of a config file, given so, or by its place among this project's.

    Args:
        name: such as ``configs/coco/panoptic/aff_tiny.yaml`` or ``coco/panoptic/aff_tiny``.

    Raises:
        UserError: there is none.
    """
    name = os.fspath(name)
    if os.path.isfile(name):
        return name
    path = config_folder() / f"{_below_configs(name)}.yaml"
    if path.is_file():
        return str(path)
    raise UserError(_missing_config(name))


def load_cfg(config_file: str | os.PathLike, opts: Sequence[str] = ()) -> CfgNode:
    """Detectron2's defaults, this project's, a config file and overrides, in this order.

    ``MODEL.DEVICE`` becomes ``cpu`` where no GPU is visible; :func:`announce_device` says so.
    ``INPUT.DATASET_MAPPER_NAME`` becomes ``detectron2`` where it is not named and one of
    Detectron2's own architectures is. Datasets of ``DATASETS.CUSTOM`` are registered.

    Args:
        config_file: path of a yaml file, or its place among this project's, see
            :func:`find_config`; its ``_BASE_`` files are merged first. They may be those of the
            installed Detectron2, see :class:`aff_seg.config_files.Detectron2Configs`.
        opts: ``[KEY, VALUE, KEY, VALUE, ...]``, merged last.

    Returns:
        The config, not frozen.

    Raises:
        UserError: a file is missing or no yaml mapping, a key does not exist, or a value has
            the wrong type, is too small, or names a part that is not registered, or a dataset
            of ``DATASETS.CUSTOM`` is wrong.
    """
    cfg = get_cfg()
    add_aff_config(cfg)
    named = {*_merge_file(cfg, find_config(config_file)), *_merge_opts(cfg, list(opts))}
    _check_values(cfg)
    if "MODEL.META_ARCHITECTURE" in named and "INPUT.DATASET_MAPPER_NAME" not in named:
        if cfg.MODEL.META_ARCHITECTURE in ARCHITECTURES:
            cfg.INPUT.DATASET_MAPPER_NAME = DETECTRON2
    _fit_to_batch(cfg)
    register_custom(cfg)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    return cfg


def announce_device(cfg: CfgNode) -> None:
    """Log in one line when the model runs on a CPU because no GPU is visible."""
    if cfg.MODEL.DEVICE == "cpu" and not torch.cuda.is_available():
        logging.getLogger(__name__).warning("No GPU is visible: running on the CPU.")


def _merge_file(cfg: CfgNode, config_file: str) -> Iterable[str]:
    """Merge a file and what it builds on; returns the keys that these name."""
    known = dict(_leaves(cfg))
    origin = {}
    for path, settings in _inherited(config_file):
        for key, value in _leaves(settings):
            if isinstance(_lookup(cfg, key), CfgNode):
                if not isinstance(value, dict):
                    raise UserError(f"{path}: {key} is a group of keys, not a key with a value.")
            elif key not in known:
                raise UserError(f"{path}: {_unknown_key(key, known)}")
            origin[key] = (path, value)
    try:
        cfg.merge_from_file(config_file, allow_unsafe=False)
    except ValueError as error:
        key = _key_of(error)
        path, value = origin[key]
        raise UserError(f"{path}: {_wrong_type(key, value, _lookup(cfg, key))}") from error
    return origin


def _merge_opts(cfg: CfgNode, opts: list[str]) -> Iterable[str]:
    """Merge pairs of a key and a value; returns the keys."""
    if len(opts) % 2:
        raise UserError(
            f"Config overrides come in pairs KEY VALUE after all --options, not {' '.join(opts)!r}."
        )
    known = dict(_leaves(cfg))
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        if key not in known:
            raise UserError(f"Command line: {_unknown_key(key, known)}")
        try:
            cfg.merge_from_list([key, value])
        except ValueError as error:
            raise UserError(f"Command line: {_wrong_type(key, value, known[key])}") from error
    return opts[::2]


def _check_values(cfg: CfgNode) -> None:
    for key in AT_LEAST_ONE:
        if _lookup(cfg, key) < 1:
            raise UserError(f"{key} is {_lookup(cfg, key)}, but must be at least 1.")
    if cfg.SOLVER.AMP.PRECISION not in PRECISIONS:
        raise UserError(
            f"SOLVER.AMP.PRECISION is {cfg.SOLVER.AMP.PRECISION!r}, but must be one of "
            f"{', '.join(PRECISIONS)}."
        )
    if cfg.INPUT.FORMAT not in CHANNEL_ORDERS:
        raise UserError(
            f"INPUT.FORMAT is {cfg.INPUT.FORMAT!r}, but the order of channels must be one of "
            f"{', '.join(CHANNEL_ORDERS)}."
        )
    _check_device(cfg.MODEL.DEVICE)
    _check_views(cfg.TEST.AUG)
    for key, registry in REGISTRIES.items():
        name = _lookup(cfg, key)
        if name not in registry:
            known = [known for known, _ in registry]
            close = difflib.get_close_matches(name, known, n=1) or known
            raise UserError(f"{key} is {name!r}, but there is no such part; take {close[0]}.")
    architecture, backbone = cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.BACKBONE.NAME
    if architecture in ARCHITECTURES and backbone == "AutoFocusFormer":
        raise UserError(
            f"MODEL.BACKBONE.NAME is {backbone}, which gives tokens, but {architecture} takes "
            f"feature maps; take {' or '.join(COUNTERPARTS.values())}."
        )


def _check_device(name: str) -> None:
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise UserError(f"MODEL.DEVICE is {name!r}, but must be cpu, cuda, or cuda:<number>.")
    number, visible = name.partition(":")[2], torch.cuda.device_count()
    if number and 0 < visible <= int(number):
        raise UserError(f"MODEL.DEVICE is {name!r}, but the GPUs visible end at {visible - 1}.")


def _check_views(aug: CfgNode) -> None:
    if not aug.ENABLED:
        return
    sizes = aug.MIN_SIZES
    if not sizes or any(type(size) is not int or size < 1 for size in sizes):
        raise UserError(
            f"TEST.AUG.MIN_SIZES is {sizes!r}, but must hold one or more lengths of the short edge "
            "in pixels, such as (512, 640)."
        )
    if aug.MAX_SIZE < 1:
        raise UserError(f"TEST.AUG.MAX_SIZE is {aug.MAX_SIZE}, but must be at least 1.")


def _fit_to_batch(cfg: CfgNode) -> None:
    """Rescale a schedule meant for ``SOLVER.REFERENCE_BATCH`` to ``SOLVER.IMS_PER_BATCH``."""
    solver, test = cfg.SOLVER, cfg.TEST
    if not solver.REFERENCE_BATCH:
        return
    if solver.REFERENCE_BATCH < 0 or solver.REFERENCE_WORLD_SIZE:
        raise UserError(
            f"SOLVER.REFERENCE_BATCH is {solver.REFERENCE_BATCH}, but must be a batch size, with "
            "SOLVER.REFERENCE_WORLD_SIZE 0, or 0."
        )
    factor = solver.IMS_PER_BATCH / solver.REFERENCE_BATCH
    solver.REFERENCE_BATCH = solver.IMS_PER_BATCH
    solver.BASE_LR *= factor
    for node, key in (
        (solver, "MAX_ITER"),
        (solver, "CHECKPOINT_PERIOD"),
        (solver, "WARMUP_ITERS"),
        (test, "EVAL_PERIOD"),
    ):
        if node[key]:
            node[key] = max(1, round(node[key] / factor))
    solver.STEPS = tuple(round(step / factor) for step in solver.STEPS)


def _inherited(path: str, heirs: tuple[str, ...] = ()) -> Iterator[tuple[str, dict]]:
    """Yield every file that ``path`` builds on, bases first, with the settings it holds."""
    if path in heirs:
        raise UserError(f"{path} inherits itself through {BASE_KEY}.")
    if not PathManager.isfile(path):
        raise UserError(f"{heirs[-1]}: its {BASE_KEY} file {path} does not exist.")
    with PathManager.open(path, encoding="utf-8") as file:
        try:
            settings = yaml.safe_load(file)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{path} is not plain yaml: {reason}") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path} must hold KEY: VALUE settings, but holds {settings!r:.80}.")
    bases = settings.pop(BASE_KEY, [])
    for base in [bases] if isinstance(bases, str) else bases:
        yield from _inherited(_base_path(path, base), (*heirs, path))
    yield path, settings


def _base_path(heir: str, base: str) -> str:
    """Where a file finds what its ``_BASE_`` names."""
    if base.startswith(DETECTRON2_CONFIGS):
        return base
    if heir.startswith(DETECTRON2_CONFIGS):
        return urljoin(heir, base)
    return os.path.normpath(os.path.join(os.path.dirname(heir), os.path.expanduser(base)))


def _leaves(node: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ("A.B.C", value) for every value of nested settings."""
    for name, value in node.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _lookup(cfg: CfgNode, key: str) -> Any:
    node: Any = cfg
    for name in key.split("."):
        node = node.get(name) if isinstance(node, CfgNode) else None
    return node


def _key_of(error: ValueError) -> str:
    """The key that yacs names at the end of a type error."""
    return re.search(r"config key: (\S+)$", str(error)).group(1)


def _unknown_key(key: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else "."
    return f"there is no config key {key}{hint}"


def _wrong_type(key: str, value: Any, default: Any) -> str:
    return (
        f"{key} is {value!r}, but must be of type {type(default).__name__}, "
        f"like its default {default!r}."
    )


def _missing_config(name: str) -> str:
    if not name:
        return "Give a config, such as --config-file configs/cityscapes/panoptic/aff_mini.yaml."
    beside = Path(name).parent
    files = beside.glob("*.yaml") if os.path.dirname(name) else ()
    there = sorted(path.stem for path in files if not path.stem.startswith("Base-"))
    if there:
        return f"Config file {name} does not exist; {beside} has {', '.join(there)}."
    folder = config_folder()
    known = [p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*/*.yaml")]
    whole = [k for k in known if "/Base-" not in k and not k.startswith("models/")]
    (close,) = difflib.get_close_matches(_below_configs(name), whole, n=1, cutoff=0.0)
    return f"There is no config {name}; give the path of a yaml file, or take {close}."


def _below_configs(name: str) -> str:
    """A config's place below ``configs``, without suffix."""
    return name.removesuffix(".yaml").removeprefix("configs/")
