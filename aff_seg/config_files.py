"""Where config files lie: this project's, and those that come with Detectron2."""

import io
import os
from pathlib import Path
from typing import Any

import detectron2
import yaml
from detectron2.utils.file_io import PathHandler, PathManager

# Beginning of the addresses of Detectron2's own configs in its repository.
DETECTRON2_CONFIGS = "https://raw.githubusercontent.com/facebookresearch/detectron2/main/configs/"


def config_folder() -> Path:
    """The folder ``configs``: inside an installed package, beside it in a source tree."""
    package = Path(__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


class Detectron2Configs(PathHandler):
    """Has the addresses of Detectron2's configs mean the files of the installed Detectron2.

    A ``_BASE_`` with such an address so needs no network and no path into ``site-packages``, in
    ``cfg.merge_from_file`` as in :func:`aff_seg.setup_cfg.load_cfg`. Some of these files compute
    values in yaml, which can run code and is refused in files of unknown origin: they are handed
    out as the plain yaml that they amount to.
    """

    def _get_supported_prefixes(self) -> list[str]:
        return [DETECTRON2_CONFIGS]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        # Files refer to their bases by "..", which stays in the address.
        name = os.path.normpath(path.removeprefix(DETECTRON2_CONFIGS))
        return os.path.join(os.path.dirname(detectron2.__file__), "model_zoo", "configs", name)

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        return os.path.isfile(self._get_local_path(path))

    _exists = _isfile

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> io.StringIO:
        with open(self._get_local_path(path), encoding="utf-8") as file:
            return io.StringIO(yaml.safe_dump(yaml.unsafe_load(file)))


PathManager.register_handler(Detectron2Configs())
