"""The trainer."""

import logging
import os
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.engine import DefaultTrainer, TrainerBase, create_ddp_model, hooks
from detectron2.evaluation import DatasetEvaluators
from detectron2.layers import NaiveSyncBatchNorm
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, JSONWriter, TensorboardXWriter
from torch import nn

from aff_seg.data import EvaluationMapper, build_train_mapper
from aff_seg.data.stream import TrainLoader, build_train_loader
from aff_seg.engine import solver
from aff_seg.engine.checkpoint import Checkpointer
from aff_seg.engine.curves import end_last_line
from aff_seg.engine.hooks import BestKeeper, CurvePlotter, Evaluator, ProgressPrinter, Saver
from aff_seg.engine.loop import StepOptions, TrainLoop
from aff_seg.errors import UserError
from aff_seg.evaluation import Results, build_evaluator, semantic_tests
from aff_seg.inference import SemanticTTA
from aff_seg.randomness import kept_random_state, set_random_state
from aff_seg.stopping import StopRequest

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
        model = share_batch_norm(self.build_model(cfg))
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        device = next(model.parameters()).device
        devices = [torch.cuda.current_device()] if device.type == "cuda" else None
        options = StepOptions(
            parts=cfg.SOLVER.ACCUMULATE,
            max_skipped=cfg.SOLVER.MAX_SKIPPED,
            precision=autocast_type(cfg, device),
            as_one=getattr(model, "as_one", None),
        )
        model = create_ddp_model(model, broadcast_buffers=False, device_ids=devices)
        self.stop_request = StopRequest()
        self._trainer = TrainLoop(model, loader, optimizer, options, self.stop_request)
        self._random_states = []
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = Checkpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self._last_eval_results = {}
        self.register_hooks(self.build_hooks())
        logging.getLogger("detectron2.engine.train_loop").addFilter(_has_no_user_error)

    def build_hooks(self) -> list[hooks.HookBase]:
        # Others take the place of Detectron2's checkpointer, evaluation and writer.
        replaced = (hooks.PeriodicCheckpointer, hooks.EvalHook, hooks.PeriodicWriter)
        built = [h for h in super().build_hooks() if not isinstance(h, replaced)]
        period, evaluation_period = self.cfg.SOLVER.CHECKPOINT_PERIOD, self.cfg.TEST.EVAL_PERIOD
        built += [
            Saver(self.checkpointer, period, evaluation_period),
            Evaluator(evaluation_period, self._evaluate),
        ]
        if self.cfg.TEST.AUG.ENABLED and self.cfg.DATASETS.TEST:
            built.append(hooks.EvalHook(0, self._test_with_TTA_at_the_end))
        if comm.is_main_process():
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

    @property
    def must_stop(self) -> bool:
        """Whether any process was asked to stop before the last step."""
        return self._trainer.must_stop

    def resume_or_load(self, resume: bool = True) -> None:
        """Load ``MODEL.WEIGHTS``, or with ``resume`` go on from the last checkpoint.

        What a resumed run computes is what the run would have computed without a break.

        Raises:
            UserError: processes find different checkpoints.
        """
        if not resume and self.checkpointer.has_checkpoint():
            logger.warning(
                "OUTPUT_DIR %s has checkpoints of an earlier training, from which --resume goes on "
                "until this one has written its own.",
                self.cfg.OUTPUT_DIR,
            )
        rest = self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if resume and self.checkpointer.has_checkpoint():
            self.start_iter = self.iter + 1
            self._random_states = rest.get("random", [])
            if len(self._random_states) != comm.get_world_size():
                logger.warning(
                    "The checkpoint has random states of %d processes, not %d: these begin anew.",
                    *(len(self._random_states), comm.get_world_size()),
                )
                self._random_states = []
        if len(set(comm.all_gather(self.start_iter))) > 1:
            raise UserError(
                f"Processes find different checkpoints in OUTPUT_DIR {self.cfg.OUTPUT_DIR}; choose "
                "a folder that all machines share."
            )

    def train(self) -> None:
        with self.stop_request.listening():
            super().train()

    def before_train(self) -> None:
        super().before_train()
        if self._random_states:
            set_random_state(self._random_states[comm.get_rank()])

    def _evaluate(self) -> Results:
        # All is saved, and evaluations can take long.
        with self.stop_request.heeded_at_once():
            self._last_eval_results = self.test(self.cfg, self.model)
        return self._last_eval_results

    def after_train(self) -> None:
        # A run that had ended before would count one iteration more.
        self.iter = min(self.iter, self.max_iter)
        if self.must_stop:
            # There is no time left; a resumed run evaluates.
            self._hooks = [h for h in self._hooks if not isinstance(h, hooks.EvalHook)]
        self._trainer.close_data()
        super().after_train()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "data": self.data_loader.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if "data" in state_dict:
            self.data_loader.load_state_dict(state_dict["data"])

    def build_writers(self) -> list[EventWriter]:
        """TensorBoard events and ``metrics.json``; the terminal has :class:`ProgressPrinter`."""
        path = os.path.join(self.cfg.OUTPUT_DIR, "metrics.json")
        end_last_line(path)
        return [JSONWriter(path), TensorboardXWriter(self.cfg.OUTPUT_DIR)]

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
    def build_train_loader(cls, cfg: CfgNode) -> TrainLoader:
        return build_train_loader(cfg, build_train_mapper(cfg))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable:
        mapper = EvaluationMapper(cfg, is_train=False)
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> Results:
        # Training goes on as if there had been no evaluation.
        with kept_random_state():
            return super().test(cfg, model, evaluators)

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: nn.Module) -> Results:
        """Score the semantic results with test-time augmentation (``TEST.AUG``).

        Returns:
            for each dataset that has semantic scores the task ``sem_seg_TTA``; nothing in it on
            other than the main process.
        """
        names = semantic_tests(cfg)
        cfg = cfg.clone()
        cfg.defrost()
        cfg.DATASETS.TEST = tuple(names)
        # Whole images, which the views are made from.
        cfg.INPUT.MIN_SIZE_TEST = 0
        only = cfg.MODEL.MASK_FORMER.TEST
        only.PANOPTIC_ON = only.INSTANCE_ON = False
        folder = os.path.join(cfg.OUTPUT_DIR, "inference_TTA")
        evaluators = [build_evaluator(cfg, name, os.path.join(folder, name)) for name in names]
        augmented = SemanticTTA(cfg, getattr(model, "module", model))
        logger.info(
            "Test-time augmentation, %d views of an image: it is of semantic results alone.",
            augmented.views,
        )
        found = by_dataset(cfg, cls.test(cfg, augmented, evaluators))
        return {
            name: {f"{task}_TTA": scores for task, scores in tasks.items()}
            for name, tasks in found.items()
        }

    def _test_with_TTA_at_the_end(self) -> dict:
        with self.stop_request.heeded_at_once():
            found = self.test_with_TTA(self.cfg, self.model)
        add_tasks(self.last_results, found)
        names = self.cfg.DATASETS.TEST
        return found if len(names) > 1 else found[names[0]]

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluators:
        folder = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
        return build_evaluator(cfg, dataset_name, folder)


def autocast_type(cfg: CfgNode, device: torch.device) -> torch.dtype | None:
    """The type to compute in where it may be lower than float32, or None for float32.

    None where ``SOLVER.AMP`` is off, and where the device has no such arithmetic, which is
    logged.
    """
    amp = cfg.SOLVER.AMP
    if not amp.ENABLED:
        return None
    kind = getattr(torch, amp.PRECISION)
    on_gpu = device.type == "cuda"
    if kind == torch.float16 and not on_gpu or kind == torch.bfloat16 and not _has_bf16(device):
        logger.warning(
            "SOLVER.AMP.PRECISION is %s, which is not for this %s: training in float32.",
            *(amp.PRECISION, "GPU" if on_gpu else "CPU"),
        )
        return None
    return kind


def share_batch_norm(model: nn.Module) -> nn.Module:
    """Have batch norms use the statistics of the whole batch where processes share it."""
    if comm.get_world_size() == 1:
        return model
    if next(model.parameters()).is_cuda:
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                shared = NaiveSyncBatchNorm(child.num_features, child.eps, child.momentum)
                shared.load_state_dict(child.state_dict())
                setattr(module, name, shared)
    return model


def _has_bf16(device: torch.device) -> bool:
    return device.type == "cpu" or torch.cuda.get_device_capability(device) >= (8, 0)


def by_dataset(cfg: CfgNode, results: Results) -> Results:
    """Results of ``DefaultTrainer.test``, which leaves out the name of a single dataset."""
    return {cfg.DATASETS.TEST[0]: results} if len(cfg.DATASETS.TEST) == 1 else results


def add_tasks(results: dict[str, dict], more: Results) -> None:
    """Add to the results of each dataset those of other tasks, in place."""
    for name, tasks in more.items():
        results.setdefault(name, {}).update(tasks)


def _has_no_user_error(record: logging.LogRecord) -> bool:
    """Keep the traceback of an error that is told in one sentence out of the log."""
    return not (record.exc_info and isinstance(record.exc_info[1], UserError))
