#!/usr/bin/env python3
"""Runs ``./lab fetch``: a Llama's weights, or dummy weights in its shapes if it is gated.

scripts/download_llama.py [MODEL] [--revision R] [--to DIR] [--fallback auto|dummy|smollm2|none] [--layers N] [--json]
"""

import os
import sys
from pathlib import Path

LAB = str(Path(__file__).resolve().parent.parent / "lab")
os.execv(sys.executable, [sys.executable, LAB, "fetch", *sys.argv[1:]])
