"""When a file that a verdict rests on has changed.

The system's events (inotify, FSEvents) come at once, and do not come at all from some folders that are shared with a container or
a virtual machine: the change happens on the other side. So the files are looked at twice a second besides. Where that finds a
change for which no event has come, the events are given up, and looking is all that is done from then on.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from watchfiles import watch

BETWEEN_LOOKS = 0.5
"""Seconds between two looks at the files, as long as events do their work."""

POLLING = 0.1
"""Seconds between two looks when there are no events."""

Looks = dict[Path, tuple[int, int, int] | None]


class Changes:
    """Watches files from a thread, and wakes whoever reads ``wake`` at each change.

    Attributes:
        wake: a file descriptor that can be read when something has changed.
        polling: whether events have been given up.
    """

    def __init__(self, files: Callable[[], Iterable[Path]], folders: Iterable[Path], polling: bool = False) -> None:
        """Begins to watch.

        Args:
            files: the files; asked for again at each look.
            folders: the folders that they are in.
            polling: look, and do not try events.
        """
        self._files, self._folders = files, tuple(folders)
        self.polling = polling
        self.wake, self._wakes = os.pipe()
        self._stop = threading.Event()
        self._seen = self._look()
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
            self._by_events()
        while not self._stop.wait(POLLING):
            self._note()

    def _by_events(self) -> None:
        """Until closed, or until a change is found that no event has told of."""
        events = watch(
            *self._folders,
            watch_filter=None,
            debounce=50,
            step=10,
            stop_event=self._stop,
            rust_timeout=int(BETWEEN_LOOKS * 1000),
            yield_on_timeout=True,
            raise_interrupt=False,
            recursive=False,
        )
        unexplained = False
        try:
            for told in events:
                changed = self._note()
                if unexplained and not told:  # an event may be a moment late, and not half a second
                    self.polling = True
                    return
                unexplained = changed and not told
        except OSError:  # no inotify, or no watches left
            self.polling = True

    def _note(self) -> bool:
        now = self._look()
        changed = {path for path in now.keys() | self._seen.keys() if now.get(path) != self._seen.get(path)}
        self._seen = now
        if changed:
            with self._lock:
                self._changed |= changed
            os.write(self._wakes, b".")
        return bool(changed)

    def _look(self) -> Looks:
        return {path: _stamp(path) for path in self._files()}


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None  # an editor that writes by renaming is between its two steps
    return found.st_mtime_ns, found.st_size, found.st_ino
