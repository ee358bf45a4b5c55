"""The trainer's parts: hooks, curves, devices, and errors told in one sentence."""

import json
import logging
import math
import re
import types

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import EventStorage, JSONWriter
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from aff_seg import add_aff_config
from aff_seg.cli import plain_errors
from aff_seg.engine.curves import curves_of, end_last_line, plot_curves, read_metrics
from aff_seg.engine.hooks import BestKeeper, CurvePlotter, ProgressPrinter
from aff_seg.engine.trainer import _has_no_user_error, autocast_type, by_dataset
from aff_seg.errors import UserError


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rows(iterations, **scalars):
    return [{"iteration": i, **{k: v + i for k, v in scalars.items()}} for i in iterations]


def test_metrics_of_a_resumed_run_replace_those_after_its_checkpoint(tmp_path):
    before = rows([0, 2, 3, 6], lr=0.0)
    for row, score in zip(before[1:], (5.0, 6.0, 7.0), strict=True):
        row["PQ"] = score
    file = write_rows(tmp_path / "metrics.json", before + rows([3, 5], lr=100.0))
    with open(file, "a") as stream:
        stream.write('{"iteration": 7, "l')  # killed while writing
    assert read_metrics(file) == {
        "lr": [(0, 0.0), (2, 2.0), (3, 103.0), (5, 105.0)],
        "PQ": [(2, 5.0), (3, 6.0)],
    }


def test_metrics_of_a_run_started_again_are_its_own(tmp_path):
    before = [*rows([0, 1, 2], lr=0.0), {"iteration": 3, "PQ": 7.0}]
    file = write_rows(tmp_path / "metrics.json", before + rows([0, 1, 2, 3, 4], lr=100.0))
    assert read_metrics(file) == {"lr": [(i, 100.0 + i) for i in range(5)]}


def test_curves_are_drawn_as_far_as_there_are_any(tmp_path):
    losses = rows(range(0, 50, 5), total_loss=30.0, loss_ce=1.0, loss_mask=2.0, loss_dice=3.0)
    file = write_rows(tmp_path / "losses.json", losses)
    assert plot_curves(file, str(tmp_path / "losses.png"))
    metrics = {"iteration": 49, "panoptic_seg/PQ": 50.0, "segm/AP": float("nan"), "lr": 1e-3}
    file = write_rows(tmp_path / "all.json", [*losses, metrics])
    assert plot_curves(file, str(tmp_path / "all.png"))
    with Image.open(tmp_path / "losses.png") as one, Image.open(tmp_path / "all.png") as both:
        assert both.height > 1.5 * one.height
    empty = write_rows(tmp_path / "empty.json", [])
    assert not plot_curves(empty, str(tmp_path / "empty.png"))
    assert not (tmp_path / "empty.png").exists()


def test_curves_of_detectron2s_models_are_their_losses():
    row = [(1, 2.0)]
    series = dict.fromkeys(("total_loss", "loss_cls", "loss_box_reg", "bbox/AP", "lr"), row)
    titles = {title: list(curves) for title, curves in curves_of(series)}
    assert titles["Losses"] == ["box_reg", "cls"]
    assert titles["Evaluation (%)"] == ["AP_box"]
    masks = dict(curves_of({**series, "segm/AP": row}))
    assert list(masks["Evaluation (%)"]) == ["AP"]


class Losses(nn.Module):
    """A model whose only parameter is its loss."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, batch):
        return {"loss_ce": self.weight * batch, "loss_mask": self.weight}


def trainer_of(model, batches):
    return SimpleTrainer(model, batches, torch.optim.SGD(model.parameters(), lr=0.1))


def test_progress_and_curves_of_a_run(tmp_path, caplog):
    trainer = trainer_of(Losses(), [torch.tensor(2.0)] * 3)
    writer = JSONWriter(str(tmp_path / "metrics.json"))
    log = types.SimpleNamespace(write=writer.write)

    class Recorder(ProgressPrinter):
        SECONDS = (1000.0, 1000.0)

        def after_step(self):
            self.trainer.storage.put_scalar("lr", 0.1, smoothing_hint=False)
            super().after_step()
            log.write()

    trainer.register_hooks([Recorder(), CurvePlotter(str(tmp_path))])
    with caplog.at_level(logging.INFO, logger="aff_seg"):
        trainer.train(0, 3)
    lines = [message for message in caplog.messages if message.startswith("iter")]
    assert [line.split("  ")[0] for line in lines] == ["iter 1/3", "iter 3/3"]
    assert "total_loss 3.000  loss_ce 2.000  loss_mask 1.000  lr 1.00e-01" in lines[0]
    assert (tmp_path / "curves.png").exists()
    assert read_metrics(str(tmp_path / "metrics.json"))["loss_ce"][0] == (0, 2.0)


def test_time_left_comes_from_the_time_per_iteration():
    printer = ProgressPrinter()
    with EventStorage(0) as storage:
        storage.put_scalars(time=2.0, lr=1e-4)
        printer.trainer = types.SimpleNamespace(storage=storage, max_iter=101)
        assert printer._line(11).startswith("iter 11/101  eta 0:03:00  2.00 s/iter  lr 1.00e-04")


def test_precision_falls_back_where_the_device_lacks_it(caplog):
    cfg = get_cfg()
    add_aff_config(cfg)
    cpu = torch.device("cpu")
    assert autocast_type(cfg, cpu) is None
    cfg.SOLVER.AMP.ENABLED = True
    assert autocast_type(cfg, torch.device("cuda")) is torch.float16
    cfg.SOLVER.AMP.PRECISION = "bfloat16"
    assert autocast_type(cfg, cpu) is torch.bfloat16
    assert not caplog.messages
    cfg.SOLVER.AMP.PRECISION = "float16"
    assert autocast_type(cfg, cpu) is None
    sentence = "SOLVER.AMP.PRECISION is float16, which is not for this CPU: training in float32."
    assert caplog.messages == [sentence]


def test_results_are_named_by_dataset():
    cfg = get_cfg()
    cfg.DATASETS.TEST = ("a",)
    assert by_dataset(cfg, {"segm": {"AP": 1.0}}) == {"a": {"segm": {"AP": 1.0}}}
    cfg.DATASETS.TEST = ("a", "b")
    assert by_dataset(cfg, {"a": {}, "b": {}}) == {"a": {}, "b": {}}


class BrokenData(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise UserError("picture.png cannot be read.")


@pytest.mark.parametrize("workers", [0, 1])
def test_error_while_loading_data_is_one_line(workers, capsys, caplog):
    loop = logging.getLogger("detectron2.engine.train_loop")
    loop.addFilter(_has_no_user_error)
    try:
        with pytest.raises(SystemExit) as end, plain_errors("train_net.py"):
            trainer_of(Losses(), DataLoader(BrokenData(), num_workers=workers)).train(0, 1)
    finally:
        loop.removeFilter(_has_no_user_error)
    assert end.value.code == 1
    assert capsys.readouterr().err == "train_net.py: error: picture.png cannot be read.\n"
    assert not re.search("Traceback|Exception", caplog.text)


def test_interruption_is_one_line(capsys):
    with pytest.raises(SystemExit) as end, plain_errors("train_net.py"):
        raise KeyboardInterrupt
    assert end.value.code == 130
    assert capsys.readouterr().err == "train_net.py: interrupted\n"


def test_a_line_cut_short_does_not_spoil_the_next(tmp_path):
    path = tmp_path / "metrics.json"
    end_last_line(str(path))
    for text in (
        '{"iteration": 0, "lr": 1}\n',
        '{"iteration": 1, "l',
        '{"iteration": 2, "lr": 3}\n',
    ):
        with open(path, "a") as file:
            file.write(text)
        end_last_line(str(path))
    assert read_metrics(str(path)) == {"lr": [(0, 1), (2, 3)]}
    assert path.read_text().count("\n") == 3


def best_run(folder, scores, *, start=0, metric="PQ"):
    """Run a hook over iterations that score so (None: not evaluated); return the weights kept."""
    model = nn.Linear(1, 1, bias=False)
    keeper = BestKeeper(model, str(folder), metric)
    trainer = types.SimpleNamespace(
        start_iter=start, max_iter=start + len(scores), last_results={}, iter=start
    )
    keeper.trainer = trainer
    keeper.before_train()
    for trainer.iter, score in enumerate(scores, start=start):
        nn.init.constant_(model.weight, trainer.iter)
        if score is not None:
            trainer.last_results = {"val": {"panoptic_seg": {"PQ": score, "SQ": 1.0}}}
        keeper.after_step()
    trainer.iter += 1
    keeper.after_train()
    path = folder / "model_best.pth"
    return torch.load(path)["model"]["weight"].item() if path.exists() else None


def test_the_best_weights_are_kept(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        assert best_run(tmp_path, [None, 3.0, None, 5.0, math.nan, 4.0]) == 3
    assert [line for line in caplog.messages if "Best PQ" in line] == [
        "Best PQ so far: 3.00 after 2 iterations.",
        "Best PQ so far: 5.00 after 4 iterations.",
    ]
    note = json.loads((tmp_path / "model_best.json").read_text())
    assert note == {"metric": "PQ", "value": 5.0, "iteration": 4, "dataset": "val"}


def test_a_resumed_run_knows_the_best_score_so_far(tmp_path):
    best_run(tmp_path, [5.0])
    assert best_run(tmp_path, [4.0], start=1) == 0
    assert best_run(tmp_path, [6.0], start=1) == 1
    # Another metric, and a run that starts anew, count from the beginning.
    assert best_run(tmp_path, [0.5], start=5, metric="panoptic_seg/SQ") == 5
    assert best_run(tmp_path, [4.0]) == 0


def test_scores_after_the_checkpoint_resumed_from_do_not_count(tmp_path):
    best_run(tmp_path, [None, None, None, 9.0])
    assert best_run(tmp_path, [4.0], start=2) == 2


def test_a_metric_that_is_not_measured_is_told(tmp_path, caplog):
    assert best_run(tmp_path, [5.0], metric="AP") is None
    assert "val has no AP: no best weights are kept." in caplog.messages
