"""Training batches that can be taken up again anywhere.

The images of all processes are one endless sequence, whose order and augmentations depend on a
seed and on places in the sequence alone: not on the number of processes or of data workers, and
not on what was drawn before.
"""

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, get_detection_dataset_dicts
from detectron2.data.build import _train_loader_from_config, trivial_batch_collator
from detectron2.utils import comm
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from aff_seg.errors import UserError
from aff_seg.randomness import seeded
from aff_seg.stopping import ignore_signals

# Place in the sequence of images, and index of the image in the dataset.
Place = tuple[int, int]


class TrainLoader:
    """Endless batches of inputs, this process's share of each.

    Iterate it once, and close the iterator at the end: that ends the data workers.

    Args:
        records: all images, in Detectron2's dataset format.
        mapper: turns a record into an input of the model.
        order: from a seed to the endless sequence of indices into ``records``.
        batch_size: images of a batch, of all processes together.
        alike: put images that are wider than high in batches of their own.
        workers: processes that load data; 0 loads in this one.
        seed: the same in all processes.
    """

    def __init__(
        self,
        records: list[dict],
        mapper: Callable[[dict], dict],
        order: Callable[[int], Iterator[int]],
        *,
        batch_size: int,
        alike: bool,
        workers: int,
        seed: int,
    ):
        self.seed = seed
        self.batches = 0
        self._inputs = _Inputs(DatasetFromList(records, copy=False), mapper)
        self._wide = _are_wide(records) if alike else None
        self._order = order
        self._batch_size = batch_size
        self._workers = workers

    def __iter__(self) -> Iterator[list[dict]]:
        self._inputs.seed = self.seed
        loader = DataLoader(
            self._inputs,
            batch_sampler=self._shares(),
            num_workers=self._workers,
            collate_fn=trivial_batch_collator,
            worker_init_fn=_init_worker,
            # Without one, torch draws from the generator that the model uses.
            generator=torch.Generator(),
        )
        iterator = iter(loader)
        try:
            for batch in iterator:
                self.batches += 1
                yield batch
        finally:
            if self._workers:
                # At the end of the program they would be terminated, which they ignore.
                iterator._shutdown_workers()

    def state_dict(self) -> dict[str, int]:
        """The seed and the number of batches handed out."""
        return {"seed": self.seed, "batches": self.batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on behind the batches of ``state``; call it before iterating."""
        self.seed, self.batches = state["seed"], state["batches"]

    def _shares(self) -> Iterator[list[Place]]:
        """The part of this process in every batch that is still to come."""
        size = self._batch_size // comm.get_world_size()
        first = comm.get_rank() * size
        for batch in itertools.islice(self._places(), self.batches, None):
            yield batch[first : first + size]

    def _places(self) -> Iterator[list[Place]]:
        """Every batch from the beginning."""
        waiting = ([], [])
        for place in enumerate(self._order(self.seed)):
            group = waiting[self._wide[place[1]] if self._wide else 0]
            group.append(place)
            if len(group) == self._batch_size:
                yield group.copy()
                group.clear()


class _Inputs(Dataset):
    """Inputs by place and index; the place decides the augmentations."""

    def __init__(self, records: DatasetFromList, mapper: Callable[[dict], dict]):
        self._records = records
        self._mapper = mapper
        self.seed = 0

    def __getitem__(self, place: Place) -> dict:
        number, index = place
        with seeded(self.seed, number):
            return self._mapper(self._records[index])


def _are_wide(records: list[dict]) -> list[bool]:
    """Which images are wider than high; headers of files tell where records do not."""
    # Most of the time goes into waiting for the disk or the network.
    with ThreadPoolExecutor(max_workers=16) as pool:
        return list(pool.map(_is_wide, records, chunksize=64))


def _is_wide(record: dict) -> bool:
    if "width" in record:
        return record["width"] > record["height"]
    try:
        with Image.open(record["file_name"]) as image:
            return image.width > image.height
    except (OSError, SyntaxError, ValueError):
        return False  # told by the mapper, should its turn come


def _init_worker(number: int) -> None:
    ignore_signals()
    # Workers share the cores already.
    cv2.setNumThreads(0)


def build_train_loader(cfg: CfgNode, mapper: Callable[[dict], dict]) -> TrainLoader:
    """The batches of ``DATASETS.TRAIN``, ordered by ``DATALOADER.SAMPLER_TRAIN``.

    Raises:
        UserError: the batch cannot be split evenly.
    """
    solver, data = cfg.SOLVER, cfg.DATALOADER
    shares = comm.get_world_size() * solver.ACCUMULATE
    if solver.IMS_PER_BATCH % shares:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH is {solver.IMS_PER_BATCH}, but must be a multiple of {shares}: "
            f"{comm.get_world_size()} processes times SOLVER.ACCUMULATE {solver.ACCUMULATE}."
        )
    records = get_detection_dataset_dicts(
        cfg.DATASETS.TRAIN, filter_empty=data.FILTER_EMPTY_ANNOTATIONS
    )

    def order(seed: int) -> Iterator[int]:
        # Detectron2's samplers draw their seeds.
        with seeded(seed):
            try:
                sampler: Any = _train_loader_from_config(cfg, mapper, dataset=records)["sampler"]
            except ValueError as error:
                raise UserError(f"DATALOADER.SAMPLER_TRAIN: {error}.") from error
        # Iterating the sampler itself would give the share of this process.
        return sampler._infinite_indices()

    return TrainLoader(
        records,
        mapper,
        order,
        batch_size=solver.IMS_PER_BATCH,
        alike=data.ASPECT_RATIO_GROUPING,
        workers=data.NUM_WORKERS,
        seed=cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed(),
    )
