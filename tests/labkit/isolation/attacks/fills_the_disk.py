"""A file without an end, in its own folder."""

import os

with open(os.path.join(os.environ["TMPDIR"], "large"), "wb") as file:
    while True:
        file.write(bytes(1 << 24))
