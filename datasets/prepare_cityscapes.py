"""Make what training on Cityscapes needs beside the published files.

`*_gtFine_labelTrainIds.png` holds the 19 classes that are trained and 255 for others, for
semantic and panoptic segmentation; `cityscapes_panoptic_{train,val}` and `.json` hold panoptic
segments. Instances are used as they are.
"""

from aff_seg.data.preparation.cityscapes import CITYSCAPES
from aff_seg.data.preparation.command import run

if __name__ == "__main__":
    run(CITYSCAPES, __doc__)
