#!/usr/bin/env python3
"""./lab fetch under the name that people look for: a Llama's weights, or dummy ones in its shapes where it is gated.

scripts/download_llama.py [MODEL] [--revision R] [--to DIR] [--fallback auto|dummy|smollm2|none] [--layers N] [--json]
"""

import os
import sys
from pathlib import Path

LAB = str(Path(__file__).resolve().parent.parent / "lab")
os.execv(sys.executable, [sys.executable, LAB, "fetch", *sys.argv[1:]])
