"""A step of training: parts, precision, and losses that are no numbers."""

import contextlib
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage
from even_points import even_rand
from torch import nn

from aff_seg.engine.loop import StepOptions, TrainLoop
from aff_seg.errors import UserError
from aff_seg.meta_arch import MaskFormer


class Toy(nn.Module):
    """Its losses are its weight times the values of the images, added up or squared."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, batch):
        values = torch.tensor([image["value"] for image in batch])
        return {"loss_ce": (self.weight * values).sum(), "loss_mask": self.weight**2}


def image(value, name="a.png"):
    return {"value": value, "file_name": name}


def loop_of(batches, **options):
    model = Toy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return TrainLoop(model, batches, optimizer, StepOptions(**options))


NAN, INF = float("nan"), float("inf")


def test_losses_of_parts_are_averaged_where_they_do_not_add_up():
    batch = [image(value) for value in (1.0, 2.0, 4.0, 5.0)]
    loop = loop_of([batch], parts=2)
    loop.train(0, 1)
    # The mean of w * 3 + w^2 and of w * 9 + w^2, of which the gradient is 8.
    assert loop.storage.history("total_loss").values()[0][0] == pytest.approx(7)
    assert loop.model.weight.item() == pytest.approx(1 - 0.1 * 8)


def test_a_step_with_a_bad_loss_is_skipped_and_named(caplog):
    good = [image(1.0)]
    loop = loop_of([good, [image(INF, "b.png"), image(0.0, "c.png")], good], max_skipped=1)
    weights = []
    loop.register_hooks([after_each_step(lambda: weights.append(loop.model.weight.item()))])
    with caplog.at_level(logging.WARNING, logger="aff_seg"):
        loop.train(0, 3)
    # d(w * 1 + w^2) is 3 and 2.4.
    assert weights == pytest.approx([0.7, 0.7, 0.46])
    sentence = "loss_ce not finite on b.png, c.png (1 in a row, at most 1)."
    assert caplog.messages == [f"Iteration 2 is skipped, {sentence}"]
    # The count began anew.
    assert loop.skipped == 0
    assert loop.storage.history("total_loss").values()[1][1] == 2


def after_each_step(function):
    from detectron2.engine.hooks import CallbackHook

    return CallbackHook(after_step=lambda trainer: function())


def test_too_many_skipped_steps_end_the_training():
    loop = loop_of([[image(1.0)], *[[image(NAN, "b.png")]] * 9], max_skipped=2)
    with pytest.raises(UserError) as caught:
        loop.train(0, 10)
    message = str(caught.value)
    assert message.startswith("Iteration 4: loss_ce not finite on b.png; that is more than 2 ")
    assert "\n" not in message
    assert loop.model.weight.item() == pytest.approx(0.7)


def test_the_count_of_skipped_steps_outlasts_a_break():
    loop = loop_of([[image(NAN)]] * 3, max_skipped=5)
    loop.train(0, 2)
    again = loop_of([[image(NAN)]] * 9, max_skipped=5)
    again.load_state_dict(loop.state_dict())
    assert again.skipped == 2
    with pytest.raises(UserError, match="Iteration 6"):
        again.train(2, 9)


def test_only_the_images_of_the_bad_part_are_named(caplog):
    batch = [image(1.0, "a.png"), image(2.0, "b.png"), image(NAN, "c.png"), image(3.0, "d.png")]
    with caplog.at_level(logging.WARNING, logger="aff_seg"):
        loop_of([batch], parts=4, max_skipped=1).train(0, 1)
    assert "loss_ce not finite on c.png (1 in a row" in caplog.text


def test_autocast_reaches_the_model_and_float16_is_scaled():
    seen = []

    class Spy(Toy):
        def forward(self, batch):
            seen.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else 0)
            return super().forward(batch)

    for precision in (None, torch.bfloat16, torch.float16):
        model = Spy()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        options = StepOptions(precision=precision)
        loop = TrainLoop(model, [[image(1.0)]], optimizer, options)
        assert loop.grad_scaler.is_enabled() == (precision is torch.float16)
        loop.train(0, 1)
        assert model.weight.item() == pytest.approx(0.7)
        assert ("grad_scaler" in loop.state_dict()) == (precision is torch.float16)
    assert seen == [0, torch.bfloat16, torch.float16]


class Steep(Toy):
    """A finite loss with an infinite gradient."""

    def forward(self, batch):
        return {"loss_ce": (self.weight - 1).sqrt()}


def test_a_bad_gradient_is_skipped_too(caplog):
    model = Steep()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loop = TrainLoop(model, [[image(1.0)]], optimizer, StepOptions(max_skipped=1))
    loop.train(0, 1)
    assert model.weight.item() == 1
    assert "Iteration 1 is skipped, gradient not finite on a.png" in caplog.text


class Normed(Toy):
    """Its loss is that of the images, behind a batch norm."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(1)

    def forward(self, batch):
        values = torch.tensor([[image["value"]] for image in batch])
        return {"loss_ce": (self.weight * self.norm(values) ** 2).sum()}


def test_skipped_steps_leave_the_statistics_of_batch_norms_alone():
    good = [image(1.0), image(3.0)]
    states = []
    for batches in ([good] * 2, [good, [image(INF), image(0.0)], good]):
        model = Normed()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        TrainLoop(model, batches, optimizer, StepOptions(max_skipped=1)).train(0, len(batches))
        states.append(model.state_dict())
    assert states[0]["norm.num_batches_tracked"] == 2
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


PROCESSES = """
import argparse, logging, sys
from pathlib import Path
from torch.nn.parallel import DistributedDataParallel
from detectron2.utils import comm
from aff_seg.engine.launch import launch
from test_loop import NAN, StepOptions, Toy, TrainLoop, image, torch
logging.basicConfig(stream=sys.stdout)

def main(arguments):
    rank = comm.get_rank()
    batches = [[image(1.0)], [image(NAN if rank else 1.0, f"{rank}.png")], [image(1.0)]]
    model = DistributedDataParallel(Toy())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loop = TrainLoop(model, batches, optimizer, StepOptions(max_skipped=1))
    loop.train(0, 3)
    print("weight", round(model.module.weight.item(), 4), "skipped", loop.skipped)

launch(main, argparse.Namespace(num_gpus=1, num_machines=1))
names = [file.read_text() for file in Path("/proc/self/task").glob("*/comm")]
print("threads left", sum("gloo" in name for name in names))
"""


def test_processes_skip_together_and_name_the_images_of_all(tmp_path):
    script = tmp_path / "processes.py"
    script.write_text(PROCESSES)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    folders = os.pathsep.join((str(Path(__file__).parent), *sys.path))
    done = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "PYTHONPATH": folders, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Iteration 2 is skipped, loss_ce not finite on 1.png (1 in a row") == 2
    assert done.stdout.count("weight 0.46 skipped 0") == 2
    # They would abort the program now and then.
    assert done.stdout.count("threads left 0") == 2


def test_gradients_that_overflow_are_left_to_the_scaler(caplog):
    model = Steep()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = StepOptions(precision=torch.float16, max_skipped=0)
    loop = TrainLoop(model, [[image(1.0)]] * 2, optimizer, options)
    before = loop.grad_scaler.get_scale()
    loop.train(0, 2)
    assert model.weight.item() == 1 and loop.grad_scaler.get_scale() == before / 4
    assert loop.skipped == 0 and not caplog.messages


def test_gradients_that_no_scale_mends_end_the_training():
    model = Steep()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = StepOptions(precision=torch.float16, max_skipped=2)
    loop = TrainLoop(model, [[image(1.0)]] * 99, optimizer, options)
    with pytest.raises(UserError, match="Iteration 19: gradient not finite on a.png; that is more"):
        loop.train(0, 99)
    assert model.weight.item() == 1


@pytest.fixture
def model(load_config, tiny_opts):
    cfg = load_config("quick/shapes_cityscapes_panoptic", *tiny_opts)
    torch.manual_seed(1)
    built = MaskFormer(cfg)
    # Batch statistics are of what passes together.
    built.backbone.patch_embed.bn.eval()
    built.train = lambda mode=True: built
    return built


def inputs(count, seed=0):
    """Images with 0, 1, 2, ... boxes."""
    generator = torch.Generator().manual_seed(seed)
    batch = []
    for number in range(count):
        masks = torch.zeros(number, 64, 96, dtype=torch.bool)
        for i in range(number):
            masks[i, 8 * i : 8 * i + 24, 10 * i : 10 * i + 30] = True
        classes = torch.arange(number)
        instances = Instances((64, 96), gt_classes=classes, gt_masks=masks)
        pixels = torch.randint(256, (3, 64, 96), generator=generator)
        batch.append({"image": pixels, "instances": instances, "file_name": f"{number}.png"})
    return batch


def step(model, batch, **options):
    """Losses and gradients of one step."""
    model.zero_grad()
    frozen = torch.optim.SGD(model.parameters(), lr=0.0)
    frozen.zero_grad = lambda: None
    loop = TrainLoop(model, [batch], frozen, StepOptions(**options))
    with EventStorage() as loop.storage:
        loop.run_step()
        losses = {k: v for k, (v, _) in loop.storage.latest().items() if "loss" in k}
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return losses, gradients


def assert_equal_steps(one, other, tolerance):
    assert one[0] == pytest.approx(other[0], rel=tolerance)
    assert one[1].keys() == other[1].keys()
    scale = max(g.abs().max() for g in one[1].values())
    for name, gradient in one[1].items():
        error = (gradient - other[1][name]).abs().max()
        assert error <= tolerance * scale, name


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_add_up_to_the_batch(model, monkeypatch, parts):
    monkeypatch.setattr(torch, "rand", even_rand)
    batch = inputs(4)
    whole = step(model, batch, as_one=model.as_one)
    assert_equal_steps(whole, step(model, batch, parts=parts, as_one=model.as_one), 1e-4)
    # Parts on their own would count their own masks.
    alone = step(model, batch, parts=parts, as_one=lambda _: contextlib.nullcontext())
    assert alone[0]["loss_mask"] > 1.2 * whole[0]["loss_mask"]


def test_blocks_without_stored_activations_give_the_same_bits(load_config, tiny_opts):
    results = []
    for checkpoint in (False, True):
        extra = ("MODEL.AFF.CHECKPOINT_BLOCKS", checkpoint, "MODEL.AFF.DROP_PATH_RATE", 0.5)
        cfg = load_config("quick/shapes_cityscapes_panoptic", *tiny_opts, *extra)
        torch.manual_seed(1)
        model = MaskFormer(cfg)
        calls = []
        for stage in model.backbone.layers:
            stage.blocks[0].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(2)
        results.append((*step(model, inputs(3)), len(calls)))
    (losses, gradients, calls), (again, gradients_again, calls_again) = results
    assert (calls, calls_again) == (4, 8)
    assert losses == again
    for name, gradient in gradients.items():
        assert torch.equal(gradient, gradients_again[name]), name


def test_weights_that_are_no_numbers_end_in_a_skipped_step(model, caplog):
    with torch.no_grad():
        model.backbone.layers[0].blocks[0].mlp.fc1.weight.fill_(NAN)
    with caplog.at_level(logging.WARNING, logger="aff_seg"):
        step(model, inputs(3), max_skipped=1)
    assert "loss_ce" in caplog.text and "not finite on 0.png, 1.png, 2.png" in caplog.text
