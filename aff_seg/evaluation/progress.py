"""Progress of an evaluation in the log."""

import datetime
import logging
import time


class Progress:
    """Logs a line with the time left every few seconds."""

    def __init__(self, logger: logging.Logger, total: int, *, seconds: float = 5.0) -> None:
        """
        Args:
            logger: where the lines go.
            total: number of images.
            seconds: time between two lines.
        """
        self._logger = logger
        self._total = total
        self._seconds = seconds
        self._start = self._last = time.perf_counter()

    def update(self, done: int) -> None:
        """Tell that ``done`` images, at least one, are done."""
        now = time.perf_counter()
        if now - self._last < self._seconds:
            return
        self._last = now
        left = (now - self._start) / done * (self._total - done)
        eta = datetime.timedelta(seconds=round(left))
        self._logger.info("Scored %d/%d images. ETA=%s", done, self._total, eta)
