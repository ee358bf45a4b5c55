"""Training batches: the same for any number of processes and workers, and taken up anywhere."""

import itertools
import random

import numpy as np
import pytest
import torch
from detectron2.utils import comm
from PIL import Image

from aff_seg.data.stream import TrainLoader, build_train_loader
from aff_seg.errors import UserError
from aff_seg.randomness import kept_random_state, random_state, seeded, set_random_state

# Every third image is higher than wide.
RECORDS = [{"file": i, "width": 8, "height": 9 if i % 3 == 0 else 6} for i in range(7)]


def mapper(record):
    """What an augmentation draws from each generator."""
    draws = (random.random(), np.random.rand(), torch.rand(()).item())
    return {"file": record["file"], "draws": draws}


def order(seed):
    generator = random.Random(seed)
    while True:
        yield from generator.sample(range(len(RECORDS)), len(RECORDS))


def loader_of(*, seed=1, workers=0, alike=False, records=RECORDS):
    return TrainLoader(
        records, mapper, order, batch_size=4, alike=alike, workers=workers, seed=seed
    )


def take(loader, count):
    batches = iter(loader)
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


@pytest.mark.parametrize("alike", [False, True])
def test_workers_and_processes_change_nothing(monkeypatch, alike):
    alone = take(loader_of(alike=alike), 9)
    assert take(loader_of(alike=alike, workers=2), 9) == alone
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        want = [batch[2 * rank : 2 * rank + 2] for batch in alone]
        assert take(loader_of(alike=alike), 9) == want
    files = [image["file"] for batch in alone for image in batch]
    assert alike or sorted(files[:7]) == list(range(7))
    draws = [image["draws"] for batch in alone for image in batch]
    assert len({*draws}) == len(draws) == 36


@pytest.mark.parametrize("alike", [False, True])
def test_batches_go_on_where_they_stopped(alike):
    whole = take(loader_of(alike=alike), 9)
    first = loader_of(alike=alike, workers=1)
    assert take(first, 4) == whole[:4]
    # Workers have loaded more than was handed out.
    assert first.state_dict() == {"seed": 1, "batches": 4}
    second = loader_of(alike=alike, seed=99)
    second.load_state_dict(first.state_dict())
    assert take(second, 5) == whole[4:]
    assert take(loader_of(alike=alike, seed=99), 5) != whole[4:]


def test_wide_and_high_images_come_in_batches_of_their_own():
    high = [{image["file"] % 3 == 0 for image in batch} for batch in take(loader_of(alike=True), 9)]
    assert all(len(kinds) == 1 for kinds in high) and {True} in high and {False} in high


def test_files_tell_what_records_do_not(tmp_path):
    records = []
    for i, size in enumerate([(4, 3), (3, 4), (5, 5), (9, 2)]):
        Image.new("RGB", size).save(tmp_path / f"{i}.png")
        records.append({"file": i, "file_name": str(tmp_path / f"{i}.png")})
    (tmp_path / "0.png").write_bytes(b"no image")
    assert loader_of(alike=True, records=records)._wide == [False, False, False, True]


def test_loading_leaves_the_generators_of_the_model_alone():
    torch.manual_seed(3)
    before = random_state()
    for workers in (0, 1):
        take(loader_of(workers=workers), 3)
        assert torch.equal(torch.get_rng_state(), before["torch"])
        assert random.getstate() == before["python"]
        assert torch.equal(random_state()["numpy"][1], before["numpy"][1])


def test_random_states_are_set_again(tmp_path):
    def draw():
        return random.random(), random.gauss(0, 1), np.random.randn(), torch.randn(3).tolist()

    np.random.randn()  # leaves a second number in store
    torch.save(random_state(), tmp_path / "state.pth")
    first = draw()
    set_random_state(torch.load(tmp_path / "state.pth", weights_only=True))
    assert draw() == first
    with kept_random_state():
        second = draw()
    assert draw() == second != first
    with seeded(1, 2):
        one = draw()
    with seeded(2, 1):
        assert draw() != one
    with seeded(1, 2):
        assert draw() == one


@pytest.mark.parametrize("sampler", ["TrainingSampler", "RepeatFactorTrainingSampler"])
def test_samplers_of_detectron2_repeat_by_the_seed(load_config, monkeypatch, sampler):
    options = ("DATALOADER.SAMPLER_TRAIN", sampler, "DATALOADER.NUM_WORKERS", 0)
    cfg = load_config("quick/shapes_cityscapes_panoptic", *options)
    records = [
        {"width": 2, "height": 1, "number": i, "annotations": [{"category_id": 0}]}
        for i in range(40)
    ]
    read = "aff_seg.data.stream.get_detection_dataset_dicts"
    monkeypatch.setattr(read, lambda *_, **__: records)

    def numbers(seed):
        cfg.SEED = seed
        batches = take(build_train_loader(cfg, lambda record: record["number"]), 5)
        return [number for batch in batches for number in batch]

    first = numbers(1)
    assert sorted(first) == list(range(40))
    assert numbers(1) == first != numbers(2)
    cfg.DATALOADER.SAMPLER_TRAIN = "Sampler"
    with pytest.raises(UserError, match="DATALOADER.SAMPLER_TRAIN: Unknown training sampler: Samp"):
        numbers(1)


def test_batch_that_cannot_be_split_is_refused(load_config):
    cfg = load_config("quick/shapes_cityscapes_panoptic", "SOLVER.ACCUMULATE", 3)
    with pytest.raises(UserError) as caught:
        build_train_loader(cfg, mapper)
    assert str(caught.value) == (
        "SOLVER.IMS_PER_BATCH is 8, but must be a multiple of 3: 1 processes times "
        "SOLVER.ACCUMULATE 3."
    )
