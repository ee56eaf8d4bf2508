"""Detects changes of the files that a verdict depends on.

The system's events (inotify, FSEvents) arrive at once, but some folders that are shared with a container or a virtual machine
send none. So the files are polled twice a second as well. After a change without an event, only polling is used.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue

from watchfiles import watch

SLOW_POLL, FAST_POLL = 0.5, 0.1
"""Seconds between two polls: while events are used, and while only polling is used."""


class Changes:
    """Watches files in a thread.

    Args:
        files: returns the paths to watch; called at each poll.
        folders: the folders whose events are used.

    Attributes:
        wake: a file descriptor with one byte to read for each change that :meth:`take` has not returned.
        polling: whether only polling is used.
    """

    def __init__(self, files: Callable[[], Iterable[Path]], folders: Iterable[Path]) -> None:
        self.polling = False
        self.wake, self._wakes = os.pipe()
        self._files, self._stop = files, threading.Event()
        self._changed: SimpleQueue[set[Path]] = SimpleQueue()
        self._stamps = {path: _stamp(path) for path in files()}
        self._thread = threading.Thread(target=self._watch, args=tuple(folders), daemon=True)
        self._thread.start()

    def take(self) -> set[Path]:
        """Waits for the next change and returns the paths that changed."""
        os.read(self.wake, 1)
        return self._changed.get()

    def close(self) -> None:
        """Ends the thread and closes ``wake``."""
        self._stop.set()
        self._thread.join()
        os.close(self.wake)
        os.close(self._wakes)

    def _watch(self, *folders: Path) -> None:
        without_event = False
        events = watch(
            *folders,
            watch_filter=None,
            debounce=50,
            step=10,
            stop_event=self._stop,
            rust_timeout=int(SLOW_POLL * 1000),
            yield_on_timeout=True,
            recursive=False,
        )
        with suppress(OSError):  # no inotify, or no watches left
            for event in events:
                changed = self._poll()
                if without_event and not event:  # an event may be late, but not half a second
                    break
                without_event = changed and not event
        self.polling = True
        while not self._stop.wait(FAST_POLL):
            self._poll()

    def _poll(self) -> bool:
        """Compares the files' time, size and inode with the last poll; queues the changed paths; returns whether any changed."""
        before, self._stamps = self._stamps, {path: _stamp(path) for path in self._files()}
        changed = {path for path, _ in before.items() ^ self._stamps.items()}
        if changed:
            self._changed.put(changed)
            os.write(self._wakes, b".")
        return bool(changed)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None  # an editor that saves by renaming is between its two steps
    return found.st_mtime_ns, found.st_size, found.st_ino
