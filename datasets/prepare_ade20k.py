"""Make what training on ADE20K needs beside the published files.

`annotations_detectron2` holds the label images with classes that count from 0 and 255 for none,
for semantic segmentation; `ade20k_instance_{train,val}.json` lists the things of
`annotations_instance`; `ade20k_panoptic_{train,val}` and `.json` join the two.
"""

from aff_seg.data.preparation.ade20k import ADE20K
from aff_seg.data.preparation.command import run

if __name__ == "__main__":
    run(ADE20K, __doc__)
