"""A step of a preparation: what is made for each image of a split, and how it is checked."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from aff_seg.data.preparation.listing import Journal, Listing, Record
from aff_seg.data.preparation.processes import run_jobs
from aff_seg.errors import UserError

TASKS = ("semantic", "instance", "panoptic")


@dataclass(frozen=True)
class Job:
    """One image.

    Attributes:
        name: id of the image.
        picture: the image's file.
        sources: label files that are read, in an order known to the step.
        outputs: label files that are made.
        record: what a published listing says of the image, where there is one.
    """

    name: str | int
    picture: Path
    sources: tuple[Path, ...] = ()
    outputs: tuple[Path, ...] = ()
    record: Record | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return str((*self.sources, self.picture)[0])


@dataclass(frozen=True)
class Step:
    """One thing to make or to check, for all images of a split.

    Attributes:
        title: tells it from others.
        jobs: its images.
        check: (job, its record in the listing, None where there is none) -> one sentence for each
            fault.
        make: writes the outputs of a job, and returns its record if there is a listing; None
            where files are only checked.
        listing: the JSON file that is made of the records.
        check_whole: one sentence for each fault that is not that of an image.
    """

    title: str
    jobs: list[Job]
    check: Callable[[Job, Record | None], list[str]]
    make: Callable[[Job], Record | None] | None = None
    listing: Listing | None = None
    check_whole: Callable[[], list[str]] = list


@dataclass(frozen=True)
class Dataset:
    """A published dataset.

    Attributes:
        folder: its folder in the root of datasets.
        published: number of pictures of each split.
        made: what the steps make, as patterns of paths below ``folder``.
        steps: (path of ``folder``, split, tasks, whether to look at published files too) ->
            functions that return one step each, or raise a :class:`UserError` where nothing of
            it is there. Tasks are of ``TASKS``.
    """

    folder: str
    published: dict[str, int]
    made: tuple[str, ...]
    steps: Callable[[Path, str, Collection[str], bool], list[Callable[[], Step]]]


def prepare(step: Step, *, workers: int, progress: bool = True) -> tuple[int, list[str]]:
    """Make what is not there yet.

    Where an image fails, those that do not are made, but not the listing.

    Returns:
        (number of images for which files were made, one sentence for each that failed).
    """
    listed, records = _records_so_far(step)
    todo = [job for job in step.jobs if not _is_done(step, job, records)]
    for folder in {path.parent for job in todo for path in job.outputs}:
        folder.mkdir(parents=True, exist_ok=True)
    faults = []
    done = len(step.jobs) - len(todo)
    run = partial(run_jobs, workers=workers, title=step.title, done=done, progress=progress)
    if step.listing is None:
        faults = [fault for _, _, fault in run(step.make, todo) if fault]
        return len(todo) - len(faults), faults
    if todo:
        with Journal(step.listing) as journal:
            for job, record, fault in run(step.make, todo):
                if fault:
                    faults.append(fault)
                else:
                    records[job.name] = record
                    journal.add(record)
    if not faults:
        if todo or list(listed) != [job.name for job in step.jobs]:
            step.listing.write(records[job.name] for job in step.jobs)
        Journal(step.listing).delete()
    return len(todo) - len(faults), faults


def _records_so_far(step: Step) -> tuple[dict, dict]:
    """Records of the listing, and these with those of a run that was interrupted."""
    if step.listing is None:
        return {}, {}
    listed = {}
    if step.listing.path.is_file():
        try:
            listed = step.listing.records(step.listing.read())
        except UserError:
            # Damaged: made anew.
            pass
    return listed, {**listed, **Journal(step.listing).read()}


def _is_done(step: Step, job: Job, records: dict) -> bool:
    recorded = step.listing is None or job.name in records
    return recorded and all(path.is_file() for path in job.outputs)


def check(step: Step, *, workers: int, progress: bool = True) -> Iterator[str]:
    """Yield one sentence for each thing that is missing or wrong; nothing is written."""
    yield from step.check_whole()
    records: dict = {}
    if step.listing is not None:
        try:
            content = step.listing.read()
        except UserError as error:
            yield str(error)
        else:
            yield from step.listing.faults(content)
            records = step.listing.records(content)
            names = {job.name for job in step.jobs}
            for name in dict.fromkeys(image["id"] for image in content["images"]):
                if name not in names:
                    yield f"{step.listing.path} lists image {name}, of which there is no picture."
            for job in step.jobs:
                if job.name not in records:
                    yield f"{step.listing.path} does not list image {job.name}."
    pairs = [_Pair(job, records.get(job.name)) for job in step.jobs]
    work = partial(_check_pair, step.check)
    title = f"check {step.title}"
    for _, faults, fault in run_jobs(work, pairs, workers=workers, title=title, progress=progress):
        yield from [fault] if fault else faults


@dataclass(frozen=True)
class _Pair:
    job: Job
    record: Record | None

    def __str__(self) -> str:
        return str(self.job)


def _check_pair(check: Callable[[Job, Record | None], list[str]], pair: _Pair) -> list[str]:
    return check(pair.job, pair.record)
