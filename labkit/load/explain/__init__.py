"""What a load error of vLLM means, and the row that would mend it: ``./lab explain``.

message.py   finds the error in a log, and says it in words
survey.py    loads a checkpoint's tensors one by one into the real class on meta: which have no home, which parameters are empty
rows.py      lays the two beside each other and proposes rows of a WeightsMapper
mend.py      tries the rows on meta, and says whether the load is whole with them
"""

from labkit.load.explain.mend import Mended, mend
from labkit.load.explain.message import Said, read, read_log
from labkit.system.errors import UserError

__all__ = ["Mended", "Said", "UserError", "mend", "read", "read_log"]
