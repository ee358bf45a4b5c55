"""Every configuration key this plugin adds to Detectron2's defaults."""

from detectron2.config import CfgNode as CN

from aff_seg import config_files  # noqa: F401  configs may name those of Detectron2 as bases


def add_aff_config(cfg: CN) -> None:
    """Add the keys of AutoFocusFormer and of its head to ``cfg``, in place.

    Call it right after ``detectron2.config.get_cfg()`` and before merging a file.
    Symbols in the comments are those of the paper (arXiv 2304.12406).
    """
    _add_backbone(cfg)
    _add_swin(cfg)
    _add_head(cfg)
    _add_solver(cfg)
    _add_input(cfg)
    _add_datasets(cfg)
    # Keep the weights that score best on the first of DATASETS.TEST as model_best.pth: PQ, SQ, RQ,
    # PQ_th, PQ_st, AP, AP50, mIoU, for detectors without masks AP_box or AP50_box, or any
    # task/metric of results.json, such as segm/APs. Empty: none.
    cfg.TEST.BEST_METRIC = ""
    # Two runs on the same machine give the same bits. SEED becomes 0 where it is not set.
    # Some operators are slower so on a GPU.
    cfg.DETERMINISTIC = False


def _add_backbone(cfg: CN) -> None:
    aff = cfg.MODEL.AFF = CN()
    # Sizes of the four stages.
    aff.EMBED_DIM = [32, 128, 256, 384]
    aff.DEPTHS = [2, 2, 6, 2]
    aff.NUM_HEADS = [2, 4, 8, 16]
    aff.MLP_RATIO = 2.0
    # Tokens per balanced cluster, and tokens wanted in a neighbourhood per stage:
    # a token attends its NBHD_SIZE / CLUSTER_SIZE nearest clusters.
    aff.CLUSTER_SIZE = 8
    aff.NBHD_SIZE = [48, 48, 48, 48]
    # Initial value of the layer-scale vectors; 0 builds none.
    aff.LAYER_SCALE = 0.0
    # Weight of the learned importance against the grid prior (alpha).
    aff.ALPHA = 4.0
    # Share of the tokens kept by each downsampling.
    aff.DS_RATE = 0.25
    # Always keep the coarse grid of tokens that connects distant regions.
    aff.RESERVE = True
    # Dropout on token features; dropout on attention weights (must stay 0); stochastic depth.
    aff.DROP_RATE = 0.0
    aff.ATTN_DROP_RATE = 0.0
    aff.DROP_PATH_RATE = 0.0
    # LayerNorm after the patch embedding.
    aff.PATCH_NORM = True
    # Keep no activations of the blocks for the backward pass but compute them again: less
    # memory, more time, the same gradients.
    aff.CHECKPOINT_BLOCKS = False
    # Levels handed to the head; with an FPN, MODEL.FPN.IN_FEATURES counts.
    aff.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    # Exponent of inverse-distance interpolation in the pixel decoder, on distances, and
    # whether each layer learns its own.
    aff.SHEPARD_POWER = 6.0
    aff.SHEPARD_POWER_LEARNABLE = True


def _add_swin(cfg: CN) -> None:
    # Sizes of Swin Transformers, for the backbone build_swin_backbone; by default Swin-Tiny.
    swin = cfg.MODEL.SWIN = CN()
    swin.EMBED_DIM = 96
    swin.DEPTHS = [2, 2, 6, 2]
    swin.NUM_HEADS = [3, 6, 12, 24]
    swin.WINDOW_SIZE = 7
    swin.DROP_PATH_RATE = 0.3


def _add_head(cfg: CN) -> None:
    head = cfg.MODEL.SEM_SEG_HEAD
    head.PIXEL_DECODER_NAME = "MSDeformAttnPixelDecoder"
    head.MASK_DIM = 256
    # Pixel decoder: levels, layers, heads and sampling points of deformable attention.
    head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES = ["res3", "res4", "res5"]
    head.TRANSFORMER_ENC_LAYERS = 6
    head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS = 8
    head.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS = 4
    head.DEFORMABLE_TRANSFORMER_ENCODER_DIM_FEEDFORWARD = 1024

    mask_former = cfg.MODEL.MASK_FORMER = CN()
    mask_former.TRANSFORMER_DECODER_NAME = "MultiScaleMaskedTransformerDecoder"
    mask_former.HIDDEN_DIM = 256
    mask_former.NUM_OBJECT_QUERIES = 100
    mask_former.NHEADS = 8
    mask_former.DIM_FEEDFORWARD = 2048
    # Decoder layers, counting the prediction made before the first: DEC_LAYERS - 1 are built.
    mask_former.DEC_LAYERS = 10
    # Batches are padded with zeros to a multiple of this many pixels.
    mask_former.SIZE_DIVISIBILITY = 32
    # Loss and matching weights.
    mask_former.DEEP_SUPERVISION = True
    mask_former.NO_OBJECT_WEIGHT = 0.1
    mask_former.CLASS_WEIGHT = 2.0
    mask_former.MASK_WEIGHT = 5.0
    mask_former.DICE_WEIGHT = 5.0
    # Points per mask in matching and loss, and how they are chosen.
    mask_former.TRAIN_NUM_POINTS = 12544
    mask_former.OVERSAMPLE_RATIO = 3.0
    mask_former.IMPORTANCE_SAMPLE_RATIO = 0.75

    test = mask_former.TEST = CN()
    test.SEMANTIC_ON = True
    test.INSTANCE_ON = False
    test.PANOPTIC_ON = False
    # Panoptic: least class probability of a query; least share of a segment left visible.
    test.OBJECT_MASK_THRESHOLD = 0.8
    test.OVERLAP_THRESHOLD = 0.8


def _add_solver(cfg: CN) -> None:
    solver = cfg.SOLVER
    solver.OPTIMIZER = "ADAMW"
    # Learning rate of every module whose name contains "backbone", relative to BASE_LR.
    solver.BACKBONE_MULTIPLIER = 0.1
    # Weight decay of nn.Embedding; WEIGHT_DECAY_NORM is Detectron2's.
    solver.WEIGHT_DECAY_EMBED = 0.0
    # Polynomial decay, used by LR_SCHEDULER_NAME: WarmupPolyLR.
    solver.POLY_LR_POWER = 0.9
    solver.POLY_LR_CONSTANT_ENDING = 0.0
    # Pass a batch of IMS_PER_BATCH in so many parts, one after the other: less memory, the same
    # losses and gradients but for the batch norm of the patch embedding, which sees a part.
    solver.ACCUMULATE = 1
    # The batch that BASE_LR, MAX_ITER, STEPS, WARMUP_ITERS, CHECKPOINT_PERIOD and
    # TEST.EVAL_PERIOD are meant for: with another IMS_PER_BATCH the learning rate grows and the
    # iterations shrink by the same factor. 0: they are used as they are.
    solver.REFERENCE_BATCH = 0
    # Steps in a row that may be skipped because a loss or a gradient is infinite or not a number.
    solver.MAX_SKIPPED = 10
    # Type of mixed precision with AMP.ENABLED: float16 (GPUs) or bfloat16 (newer GPUs, CPUs).
    solver.AMP.PRECISION = "float16"


def _add_input(cfg: CN) -> None:
    inp = cfg.INPUT
    # Training mapper, one of aff_seg.data.MAPPERS, or detectron2 for models of Detectron2, which
    # are then also scored by what they give. Config files of these need not name it.
    inp.DATASET_MAPPER_NAME = "mask_former_panoptic"
    # Photometric augmentation of SSD.
    inp.COLOR_AUG_SSD = False
    # Largest share of a crop one class may take (1.0: any).
    inp.CROP.SINGLE_CATEGORY_MAX_AREA = 1.0
    # Training images are padded to exactly this many pixels a side; -1: not at all.
    inp.SIZE_DIVISIBILITY = -1
    # Large-scale jitter.
    inp.IMAGE_SIZE = 1024
    inp.MIN_SCALE = 0.1
    inp.MAX_SCALE = 2.0


def _add_datasets(cfg: CN) -> None:
    # Datasets of your own: a list of entries, whose names DATASETS.TRAIN and DATASETS.TEST may
    # then hold. Classes, evaluator and MODEL.SEM_SEG_HEAD.NUM_CLASSES (for Detectron2's detectors,
    # those of ROI_HEADS or RETINANET) are derived from them. Paths are absolute or seen from the
    # current folder.
    #
    #   DATASETS:
    #     CUSTOM:
    #       - NAME: pets_train
    #         KIND: coco                       # coco, coco_panoptic or semantic
    #         IMAGES: /data/pets/train         # folder of the images
    #         ANNOTATIONS: /data/pets/train.json
    #     TRAIN: [pets_train]
    #
    # KIND          ANNOTATIONS
    # coco          JSON file of objects in COCO's form
    # coco_panoptic JSON file in COCO's panoptic form; its PNG files lie in the folder SEGMENTS,
    #               by default the path of the JSON file less ".json"
    # semantic      folder of label images of one channel, named like the images; a pixel is a
    #               class, from 0, or MODEL.SEM_SEG_HEAD.IGNORE_VALUE
    #
    # CLASSES, optional, is a list of names or of COCO's categories, such as
    # {id: 7, name: cat, isthing: 1, color: [255, 0, 0]}. Without it the JSON file tells the
    # classes; those of label images are numbered up to the highest that occurs. COLORS, optional,
    # is a list of [red, green, blue], one for each class.
    cfg.DATASETS.CUSTOM = []
