"""Make what training on COCO needs beside the published files.

`panoptic_semseg_{train,val}2017` holds the class of each pixel, 0 to 132 and 255 for none, taken
from the panoptic images; semantic segmentation is evaluated on it. `panoptic_stuff_{train,val}2017`
holds 0 for things, 1 to 53 for stuff and 255 for none, on which Detectron2 trains Panoptic FPN and
semantic FPN. Instances and panoptic segments are used as they are.
"""

from aff_seg.data.preparation.coco import COCO
from aff_seg.data.preparation.command import run

if __name__ == "__main__":
    run(COCO, __doc__)
