"""Names of devices."""

import re


def file_name(device: str) -> str:
    """The name of a device as that of a file, without suffix."""
    return re.sub("[^a-z0-9]+", "_", device.lower()).strip("_")
