"""Leaves a thread, a child, and a child's child in a session of its own that writes to a file for as long as it lives."""

import os
import threading
import time

threading.Thread(target=time.sleep, args=(600,)).start()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execvp("sleep", ["sleep", "31415"])
    os._exit(0)
