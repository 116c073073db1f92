"""Shared by downloading and unpacking: limits, a progress bar, the size of a chunk."""

from __future__ import annotations

from dataclasses import dataclass

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from scenedistill.core.terminal import plain_console

CHUNK = 1 << 16  # bytes


@dataclass(frozen=True)
class Limits:
    """Limits of a download; the defaults are far above any data set of the catalogue and below the size of a disk.

    `ratio` is the size unpacked over the size packed (images hardly shrink at all; archives made to fill a disk do).
    `attempts` counts failures in a row without a single new byte; `timeout` and `backoff` are in seconds, the wait
    doubles each time.
    """

    download_bytes: int = 50 << 30
    unpacked_bytes: int = 100 << 30
    files: int = 500_000
    ratio: float = 100.0
    attempts: int = 5
    timeout: float = 30.0
    backoff: float = 1.0


def byte_progress(what: str, show: bool) -> Progress:
    """Create a progress bar for bytes on the standard error, labelled `what`; use it as a context manager."""
    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=plain_console(stderr=True), disable=not show)
