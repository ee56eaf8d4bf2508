"""100 MB on each stream."""

import sys

for stream in (sys.stdout, sys.stderr):
    for _ in range(100):
        stream.write("x" * (1 << 20))
