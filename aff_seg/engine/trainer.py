"""The trainer."""

import logging
import os
import weakref
from collections.abc import Iterable

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine import (
    AMPTrainer,
    DefaultTrainer,
    SimpleTrainer,
    TrainerBase,
    create_ddp_model,
    hooks,
)
from detectron2.evaluation import DatasetEvaluators
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, JSONWriter, TensorboardXWriter
from torch import nn

from aff_seg.data import EvaluationMapper, build_train_mapper
from aff_seg.engine import solver
from aff_seg.engine.checkpoint import Checkpointer
from aff_seg.engine.hooks import BestKeeper, CurvePlotter, ProgressPrinter
from aff_seg.errors import UserError
from aff_seg.evaluation import Results, build_evaluator

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Detectron2's trainer with this project's data, optimizer, evaluators and checkpoints.

    It also runs on a CPU, in one or several processes.
    """

    def __init__(self, cfg: CfgNode) -> None:
        """Build everything that training needs; see :meth:`resume_or_load` for the weights.

        This takes the place of ``DefaultTrainer.__init__``, whose mixed precision and
        distributed model need GPUs, and whose checkpointer cannot be chosen.
        """
        TrainerBase.__init__(self)
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        on_gpu = next(model.parameters()).is_cuda
        devices = [comm.get_local_rank()] if on_gpu else None
        model = create_ddp_model(model, broadcast_buffers=False, device_ids=devices)
        loop = AMPTrainer if use_amp(cfg, on_gpu) else SimpleTrainer
        self._trainer = loop(model, loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = Checkpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self._last_eval_results = {}
        self.register_hooks(self.build_hooks())
        logging.getLogger("detectron2.engine.train_loop").addFilter(_has_no_user_error)

    def build_hooks(self) -> list[hooks.HookBase]:
        built = super().build_hooks()
        if comm.is_main_process():
            built.pop()  # Detectron2's writer, whose period is fixed
            # Short runs, too, get curves worth looking at.
            period = min(20, max(1, self.max_iter // 100))
            if self.cfg.TEST.BEST_METRIC:
                weights, folder = self.checkpointer.model, self.cfg.OUTPUT_DIR
                built.append(BestKeeper(weights, folder, self.cfg.TEST.BEST_METRIC))
            built += [
                ProgressPrinter(),
                hooks.PeriodicWriter(self.build_writers(), period=period),
                CurvePlotter(self.cfg.OUTPUT_DIR),
            ]
        return built

    def build_writers(self) -> list[EventWriter]:
        """TensorBoard events and ``metrics.json``; the terminal has :class:`ProgressPrinter`."""
        return [
            JSONWriter(os.path.join(self.cfg.OUTPUT_DIR, "metrics.json")),
            TensorboardXWriter(self.cfg.OUTPUT_DIR),
        ]

    @property
    def last_results(self) -> Results:
        """Results of the last evaluation, empty before the first."""
        results = self._last_eval_results
        return by_dataset(self.cfg, results) if results else {}

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        model = build_model(cfg)
        count = sum(parameter.numel() for parameter in model.parameters())
        logger.info("%s with %s parameters", cfg.MODEL.META_ARCHITECTURE, f"{count:,}")
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return solver.build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(
        cls, cfg: CfgNode, optimizer: torch.optim.Optimizer
    ) -> torch.optim.lr_scheduler.LRScheduler:
        return solver.build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable:
        return build_detection_train_loader(cfg, mapper=build_train_mapper(cfg))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable:
        mapper = EvaluationMapper(cfg, is_train=False)
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluators:
        folder = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
        return build_evaluator(cfg, dataset_name, folder)


def use_amp(cfg: CfgNode, on_gpu: bool) -> bool:
    """Whether to train in mixed precision; a CPU never does, and says so where it should."""
    if cfg.SOLVER.AMP.ENABLED and not on_gpu:
        logger.warning("SOLVER.AMP.ENABLED needs a GPU: training in float32.")
    return cfg.SOLVER.AMP.ENABLED and on_gpu


def by_dataset(cfg: CfgNode, results: Results) -> Results:
    """Results of ``DefaultTrainer.test``, which leaves out the name of a single dataset."""
    return {cfg.DATASETS.TEST[0]: results} if len(cfg.DATASETS.TEST) == 1 else results


def _has_no_user_error(record: logging.LogRecord) -> bool:
    """Keep the traceback of an error that is told in one sentence out of the log."""
    return not (record.exc_info and isinstance(record.exc_info[1], UserError))
