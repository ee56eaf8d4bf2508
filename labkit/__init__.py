"""What runs the labs: the board, check, trace, fetch and the tour."""

from pathlib import Path

__path__.append(str(Path(__file__).parent / "system" / "old_names"))
