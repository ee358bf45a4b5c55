"""Saving, loading and resuming, and how well a file fits a model."""

import logging
import os
import re
from dataclasses import dataclass
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from torch import Tensor

from aff_seg.atomic_file import atomic_open, remove_unfinished
from aff_seg.engine.checkpoint_file import (
    check_weights_exist,
    is_intact,
    read_checkpoint,
    write_checkpoint,
)
from aff_seg.engine.recognition import BACKBONE, left_out, names_of
from aff_seg.errors import UserError

logger = logging.getLogger(__name__)

# The share of keys that must match for a file to be taken for a checkpoint of the model.
MIN_MATCHED_SHARE = 0.5
# Names shown of keys left out.
SHOWN = 4
# The files to go on from, which the trainer writes.
PERIODIC_NAME = re.compile(r"model_(\d{7}|final)\.pth")


class Checkpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, made safe against code, wrong files and interruption.

    Reading never executes code from the file: pickles are refused unless they hold tensors,
    arrays and plain values only. Loading tells how many keys matched and which did not, and
    refuses a file that matches less than half of the model or of its backbone. A file of a
    backbone alone, such as a published classification file, need not have the head. Names must
    match exactly, but for the prefix of a backbone; there are no heuristics. Writing replaces a
    file in one step, so that a process killed at any moment leaves a directory to resume from.
    """

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``<save_dir>/<name>.pth`` with the model, all checkpointables and ``kwargs``."""
        if not self.save_dir or not self.save_to_disk:
            return
        state = {"model": self.model.state_dict()}
        state.update({key: item.state_dict() for key, item in self.checkpointables.items()})
        state.update(kwargs)
        path = os.path.join(self.save_dir, f"{name}.pth")
        logger.info("Saving checkpoint to %s", path)
        remove_unfinished(self.save_dir)
        write_checkpoint(path, state)
        self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Note in ``last_checkpoint`` which file to resume from."""
        with atomic_open(os.path.join(self.save_dir, "last_checkpoint")) as file:
            file.write(last_filename_basename.encode())

    def has_checkpoint(self) -> bool:
        """Whether there is any checkpoint to resume from."""
        return bool(self._resumable())

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Go on from the newest intact checkpoint of ``save_dir``, or load weights.

        Args:
            path: weights to start from where there is nothing to resume; may be empty.
            resume: look for a checkpoint to go on from.

        Returns:
            What the checkpoint holds besides the model and the checkpointables.

        Raises:
            UserError: no checkpoint of ``save_dir`` is intact or fits the model, or ``path``
                cannot be loaded.
        """
        candidates = self._resumable() if resume else []
        for candidate in candidates:
            if is_intact(candidate):
                return self._resume(candidate)
            logger.warning("%s is damaged: trying the one before.", candidate)
        if candidates:
            raise UserError(
                f"No checkpoint in {self.save_dir} is intact (tried {', '.join(candidates)}); "
                "delete them or train without --resume."
            )
        if resume:
            logger.info("%s has no checkpoint to resume from.", self.save_dir)
        return self.load(path, checkpointables=[])

    def _resumable(self) -> list[str]:
        """Checkpoints of ``save_dir``: the one tagged last, then the others, newest first."""
        if not os.path.isdir(self.save_dir):
            return []
        tagged = self.get_checkpoint_file()
        files = [
            file
            for file in self.get_all_checkpoint_files()
            if file == tagged or PERIODIC_NAME.fullmatch(os.path.basename(file))
        ]
        return sorted(files, key=lambda f: (f == tagged, os.path.getmtime(f)), reverse=True)

    def _resume(self, path: str) -> dict[str, Any]:
        checkpoint = read_checkpoint(path)
        match = compare(self.model.state_dict(), checkpoint["model"])
        absent = [key for key in self.checkpointables if key not in checkpoint]
        if absent or not match.complete:
            reason = f"it lacks {', '.join(absent)}" if absent else match.summary()
            raise UserError(
                f"Cannot resume from {path}, it is not of this training: {reason}; "
                "choose another OUTPUT_DIR or train without --resume."
            )
        for key, item in self.checkpointables.items():
            if _optimizer_options(item.state_dict()) != _optimizer_options(checkpoint[key]):
                raise UserError(
                    f"Cannot resume from {path}, it was trained with another optimizer; restore "
                    "SOLVER.OPTIMIZER, choose another OUTPUT_DIR or train without --resume."
                )
        logger.info("Resuming from %s.", path)
        self.model.load_state_dict(checkpoint.pop("model"))
        for key, item in self.checkpointables.items():
            try:
                item.load_state_dict(checkpoint.pop(key))
            except (KeyError, ValueError) as error:
                raise UserError(
                    f"Cannot resume from {path} with this SOLVER: {key} does not fit ({error})."
                ) from error
        return checkpoint

    def load(
        self, path: str, checkpointables: list[str] | None = None, *, whole: bool = False
    ) -> dict[str, Any]:
        """Load a checkpoint; see the class for what is refused.

        Args:
            path: of the file; may be empty.
            checkpointables: what else to load; all that there are by default.
            whole: refuse a file without all that the model learns, which would stay random.

        Raises:
            UserError: the file is missing, damaged, holds more than tensors, or is of another
                model.
        """
        self._whole = whole
        if path:
            check_weights_exist(path)
        try:
            return super().load(path, checkpointables=checkpointables)
        except OSError as error:
            raise UserError(f"Cannot read checkpoint {path}: {error}.") from error

    def _load_file(self, filename: str) -> dict[str, Any]:
        checkpoint = read_checkpoint(filename)
        weights = names_of(self.model, checkpoint["model"])
        self._report(filename, weights)
        if unused := left_out(checkpoint["model"], weights):
            shown = some(unused, SHOWN)
            logger.info("Not of this model, left out: %d keys (%s).", len(unused), shown)
        return {**checkpoint, "model": weights}

    def _report(self, path: str, weights: dict[str, Tensor]) -> None:
        match = compare(self.model.state_dict(), weights)
        if not match.fits:
            message = f"{path} does not fit this model and was not loaded: {match.summary()}"
            if match.backbone_fits and any(name.startswith(BACKBONE) for name in match.matched):
                message += (
                    "; only its backbone fits, which tools/convert_checkpoint.py --part backbone "
                    "makes a file of"
                )
            raise UserError(f"{message}.")
        learned = {name for name, _ in self.model.named_parameters()}
        if self._whole and not learned.isdisjoint([*match.missing, *match.reshaped]):
            raise UserError(
                f"{path} does not hold all of this model and was not loaded: {match.summary()}; "
                "take a checkpoint of this config, or train from this file first."
            )
        if match.backbone_alone:
            logger.warning(
                "%s gives a backbone, %s: the head starts from scratch.",
                path,
                match.backbone_summary(),
            )
        else:
            logger.info("%s: %s.", path, match.summary())

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        """Say which keys of the model keep their initial values, and which are not used.

        A head that the file does not have at all is not listed.
        """
        reshaped = {name for name, _, _ in incompatible.incorrect_shapes}
        missing = set(incompatible.missing_keys) - reshaped
        head = {name for name in self.model.state_dict() if not name.startswith(BACKBONE)}
        if head <= missing:
            missing -= head
        kept = [
            f"{name} {ours}: the file has {theirs}"
            for name, theirs, ours in incompatible.incorrect_shapes
        ] + [name for name in incompatible.missing_keys if name in missing]
        if kept:
            logger.warning("Not loaded, left at their initial values:\n  %s", "\n  ".join(kept))
        if incompatible.unexpected_keys:
            unused = "\n  ".join(incompatible.unexpected_keys)
            logger.warning("In the file, but not in this model:\n  %s", unused)


def _optimizer_options(trainer: dict[str, Any]) -> set[str]:
    """Names of the options of the optimizer in the state of a trainer."""
    groups = trainer.get("_trainer", {}).get("optimizer", {}).get("param_groups", [])
    return {name for group in groups for name in group}


@dataclass(frozen=True)
class Match:
    """How the state of a model and of a checkpoint compare, by name and shape."""

    matched: list[str]
    reshaped: list[str]
    missing: list[str]
    unexpected: list[str]

    @property
    def total(self) -> int:
        """Number of keys of the model."""
        return len(self.matched) + len(self.reshaped) + len(self.missing)

    @property
    def complete(self) -> bool:
        return not (self.reshaped or self.missing or self.unexpected)

    @property
    def fits(self) -> bool:
        """Whether enough matched of the model, and also of the backbone.

        Variants differ in their backbones alone, and these share some shapes. So the backbone
        counts on its own, together with the keys that only the file's backbone has.
        """
        enough = len(self.matched) >= MIN_MATCHED_SHARE * self.total
        return (enough or self.backbone_alone) and self.backbone_fits

    @property
    def backbone_fits(self) -> bool:
        """Whether enough matched of the backbone, or there is none."""
        matched, total = self._backbone()
        return matched >= MIN_MATCHED_SHARE * total

    @property
    def backbone_alone(self) -> bool:
        """Whether the file is of a backbone, and the model has more."""
        given = (*self.matched, *self.reshaped, *self.unexpected)
        alone = bool(given) and all(name.startswith(BACKBONE) for name in given)
        return alone and not all(name.startswith(BACKBONE) for name in self.missing)

    def backbone_summary(self) -> str:
        """Counts of the backbone's keys."""
        matched, _ = self._backbone()
        ours = (*self.matched, *self.reshaped, *self.missing)
        return f"{matched} of {sum(name.startswith(BACKBONE) for name in ours)} keys of it matched"

    def _backbone(self) -> tuple[int, int]:
        """Matched keys of the backbone; keys of the model's and the file's together."""
        union = (*self.matched, *self.reshaped, *self.missing, *self.unexpected)
        matched, total = (
            sum(name.startswith(BACKBONE) for name in names) for names in (self.matched, union)
        )
        return matched, total

    def summary(self) -> str:
        """Counts, with some names where keys did not match."""
        parts = [f"{len(self.matched)} of {self.total} keys matched"]
        matched, total = self._backbone()
        if matched != total:
            parts[0] += f", {matched} of {total} of the backbones"
        for names, what in (
            (self.reshaped, "differ in shape"),
            (self.missing, "are not in the file"),
            (self.unexpected, "of the file are not in the model"),
        ):
            if names:
                parts.append(f"{len(names)} {what} ({some(names, 3)})")
        return "; ".join(parts)


def some(names: list[str], most: int) -> str:
    """The first of some names."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def compare(model: dict[str, Tensor], weights: dict[str, Tensor]) -> Match:
    """Compare the names and shapes of two states."""
    common = [name for name in model if name in weights]
    matched = [name for name in common if model[name].shape == weights[name].shape]
    return Match(
        matched=matched,
        reshaped=[name for name in common if model[name].shape != weights[name].shape],
        missing=[name for name in model if name not in weights],
        unexpected=[name for name in weights if name not in model],
    )
