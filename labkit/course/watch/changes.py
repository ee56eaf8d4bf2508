"""Detects changes of the files that a verdict depends on.

The system's events (inotify, FSEvents) arrive at once, but not from some folders that are shared with a container or a virtual
machine. So the files are polled twice a second as well. After a change without an event, only polling is used.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from watchfiles import watch

SLOW_POLL = 0.5
"""Seconds between two polls while events arrive."""

FAST_POLL = 0.1
"""Seconds between two polls without events."""

Stamps = dict[Path, tuple[int, int, int] | None]


class Changes:
    """Watches files in a thread.

    Attributes:
        wake: a file descriptor that can be read when a file has changed.
        polling: whether events are no longer used.
    """

    def __init__(self, files: Callable[[], Iterable[Path]], folders: Iterable[Path], polling: bool = False) -> None:
        """Starts to watch.

        Args:
            files: returns the files; called at each poll.
            folders: the folders of the files.
            polling: never use events.
        """
        self._files, self._folders = files, tuple(folders)
        self.polling = polling
        self.wake, self._wakes = os.pipe()
        self._stop = threading.Event()
        self._stamps = self._read_stamps()
        self._changed: set[Path] = set()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def take(self) -> set[Path]:
        """The files that have changed since the last call."""
        os.read(self.wake, 4096)
        with self._lock:
            changed, self._changed = self._changed, set()
        return changed

    def close(self) -> None:
        """Ends the thread."""
        self._stop.set()
        self._thread.join()
        os.close(self.wake)
        os.close(self._wakes)

    def _watch(self) -> None:
        if not self.polling:
            self._use_events()
        while not self._stop.wait(FAST_POLL):
            self._poll()

    def _use_events(self) -> None:
        """Watches by events until the watch is closed, or until a change has no event."""
        events = watch(
            *self._folders,
            watch_filter=None,
            debounce=50,
            step=10,
            stop_event=self._stop,
            rust_timeout=int(SLOW_POLL * 1000),
            yield_on_timeout=True,
            raise_interrupt=False,
            recursive=False,
        )
        without_event = False
        try:
            for event in events:
                changed = self._poll()
                if without_event and not event:  # an event may be late, but not half a second
                    self.polling = True
                    return
                without_event = changed and not event
        except OSError:  # no inotify, or no watches left
            self.polling = True

    def _poll(self) -> bool:
        """Compares the files with their last stamps; returns whether one has changed."""
        now = self._read_stamps()
        changed = {path for path in now.keys() | self._stamps.keys() if now.get(path) != self._stamps.get(path)}
        self._stamps = now
        if changed:
            with self._lock:
                self._changed |= changed
            os.write(self._wakes, b".")
        return bool(changed)

    def _read_stamps(self) -> Stamps:
        return {path: _stamp(path) for path in self._files()}


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None  # an editor that writes by renaming is between its two steps
    return found.st_mtime_ns, found.st_size, found.st_ino
