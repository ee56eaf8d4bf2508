"""``python -m labkit.environment``, the old name of ``python -m labkit.system.environment``; both work."""

import sys

from labkit.system.environment import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
