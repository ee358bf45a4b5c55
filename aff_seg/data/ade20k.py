"""Classes of ADE20K: what Detectron2 does not know of them.

Classes count from 0 to 149, as in ``annotations_detectron2``; their names are Detectron2's.
"""

from detectron2.data.datasets.builtin_meta import ADE20K_SEM_SEG_CATEGORIES

# Classes of the 100 things. In `annotations_instance`, red is a place in this list, from 1.
# fmt: off
THINGS = (
    7, 8, 10, 12, 14, 15, 18, 19, 20, 22, 23, 24, 27, 30, 31, 32, 33, 35, 36, 37, 38, 39, 41, 42,
    43, 44, 45, 47, 49, 50, 53, 55, 56, 57, 58, 62, 64, 65, 66, 67, 69, 70, 71, 72, 73, 74, 75, 76,
    78, 80, 81, 82, 83, 85, 86, 87, 88, 89, 90, 92, 93, 95, 97, 98, 102, 103, 104, 107, 108, 110,
    111, 112, 115, 116, 118, 119, 120, 121, 123, 124, 125, 126, 127, 129, 130, 132, 133, 134, 135,
    136, 137, 138, 139, 142, 143, 144, 146, 147, 148, 149,
)
# fmt: on

# Things that the instance set calls otherwise than by the first name of the class.
_OTHER_NAMES = {
    8: "windowpane",
    37: "bathtub",
    38: "railing",
    87: "streetlight",
    89: "television receiver",
    90: "airplane",
    92: "apparel",
    138: "ashcan",
}
# Names of the things in the order of THINGS, as in ade20k_instance_*.json.
INSTANCE_NAMES = [_OTHER_NAMES.get(i, ADE20K_SEM_SEG_CATEGORIES[i].split(",")[0]) for i in THINGS]

_HEX = (
    "787878b4787806e6e650323204c8037878508c8c8ccc05ffe6e6e604fa07e005ffebff0796053d78784608ff33"
    "ff06528fff8cccff04ff3307cc46030066c83de6faff06330b66ffff0747ff09e00907e6dcdcdcff095c7009ff"
    "08ffd607ffe0ffb8060aff47ff290a07ffffe0ff086608ffff3d06ffc207ff7a0800ff14ff0829ff05990633ff"
    "eb0cffa0961400a3ff8c8c8cfa0a0f14ff001fff00ff1f00ffe00099ff000000ffff470000ebff00adff1f00ff"
    "0bc8c8ff520000fff5003dff00ff7000ff85ff0000ffa300ff6600c2ff00008fff33ff000052ff00ff2900ffad"
    "0a00ffadff0000ff99ff5c00ff00ffff00f5ff0066ffad00ff0014ffb8b8001fff00ff3d0047ffff00cc00ffc2"
    "00ff52000aff0070ff3300ff00c2ff007aff00ffa3ff990000ff0aff70008fff005200ffa3ff00ffeb0008b8aa"
    "8500ff00ff5cb800ffff001f00b8ff00d6ffff00705cff0000e0ff70e0ff46b8a0a300ff9900ff47ff00ff00a3"
    "ffcc00ff008f00ffeb85ff00ff00ebf500ffff007afff5000abed4d6ff0000ccff1400ffffff000099ff0029ff"
    "00ffcc2900ff29ff00ad00ff00f5ff4700ff7a00ff00ffb8005cffb8ff000085ffffd60019c2c266ff005c00ff"
)
# The colours that the makers of ADE20K give its classes, [red, green, blue].
PALETTE = [list(bytes.fromhex(_HEX[6 * i : 6 * i + 6])) for i in range(150)]
# Panoptic segments are told apart by colour, but the published ones of road and skyscraper are
# the same.
_SKYSCRAPER = 48
PANOPTIC_PALETTE = [[140, 140, 200] if i == _SKYSCRAPER else c for i, c in enumerate(PALETTE)]


def instance_categories() -> list[dict]:
    """The 100 ``categories`` of ade20k_instance_*.json."""
    return [{"id": i, "name": name} for i, name in zip(THINGS, INSTANCE_NAMES, strict=True)]


def panoptic_categories() -> list[dict]:
    """The 150 ``categories`` of ade20k_panoptic_*.json."""
    return [
        {"id": i, "name": name, "isthing": int(i in THINGS), "color": PANOPTIC_PALETTE[i]}
        for i, name in enumerate(ADE20K_SEM_SEG_CATEGORIES)
    ]
