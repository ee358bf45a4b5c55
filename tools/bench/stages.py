"""Where the time of a training mapper goes, told from outside: it is put together from timed parts.

A stage counts what no stage inside of it does.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

from detectron2.data import transforms as T

from aff_seg.data import labels, mappers
from aff_seg.data.mappers import TrainMapper

READ_IMAGE, READ_LABELS = "read image", "read labels"
RESIZE, COLOUR, FLIP = "resize and crop image", "colours", "flip image"
MOVE, DRAW, MASKS = "move labels", "draw polygons, decode RLE", "masks"
REST = "tensors, padding"
STAGES = (READ_IMAGE, READ_LABELS, RESIZE, COLOUR, FLIP, MOVE, DRAW, MASKS, REST)
_FUNCTIONS = (
    (mappers, "read_picture", READ_IMAGE),
    (labels, "read_picture", READ_LABELS),
    (labels, "polygons_to_bitmask", DRAW),
    (labels.mask_util, "decode", DRAW),
)


class StageClock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Within, time counts for ``name``; not where a stage of that name is open already."""
        self._charge()
        self._open.append(name)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def timed(self, name: str, function: Callable) -> Callable:
        """The same function, each call a stage."""

        def call(*args: object, **kwargs: object) -> object:
            with self.stage(name):
                return function(*args, **kwargs)

        return call

    def _charge(self) -> None:
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


@contextmanager
def timed_mapper(mapper: TrainMapper, clock: StageClock) -> Iterator[Callable[[dict], dict]]:
    """Within, the mapper as a function whose parts count their time."""
    with ExitStack() as stack:
        for module, name, stage in _FUNCTIONS:
            function = clock.timed(stage, getattr(module, name))
            stack.enter_context(patch.object(module, name, function))
        augmentations = [_TimedAugmentation(aug, clock) for aug in mapper.augmentations.augs]
        parts = {
            "augmentations": T.AugmentationList(augmentations),
            "labels_type": _timed_labels(mapper.labels_type, clock),
        }
        for name, part in parts.items():
            stack.enter_context(patch.object(mapper, name, part))
        yield clock.timed(REST, mapper)


class _TimedAugmentation(T.Augmentation):
    def __init__(self, augmentation: T.Augmentation, clock: StageClock):
        super().__init__()
        self._augmentation, self._clock = augmentation, clock
        kind = getattr(augmentation, "tfm", augmentation)
        self._stage = {"ColorAugSSDTransform": COLOUR, "RandomFlip": FLIP}.get(
            type(kind).__name__, RESIZE
        )

    def __call__(self, aug_input: T.AugInput) -> T.Transform:
        with self._clock.stage(self._stage):
            return self._augmentation(aug_input)


class _TimedTransforms:
    """Transforms of labels."""

    def __init__(self, transforms: T.TransformList, clock: StageClock):
        self.apply_segmentation = clock.timed(MOVE, transforms.apply_segmentation)
        self.apply_coords = clock.timed(MOVE, transforms.apply_coords)


def _timed_labels(kind: type, clock: StageClock) -> type:
    class Timed(kind):
        def targets(self, transforms: T.TransformList, *sizes: tuple[int, int]) -> labels.Targets:
            with clock.stage(MASKS):
                return super().targets(_TimedTransforms(transforms, clock), *sizes)

    return Timed
