"""What a process may know of the others that torchrun started with it, and the word that it leaves for their agent."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

from luthier.errors import LuthierError, RankLost

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"


def is_first(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is the one of its kind that writes and speaks; true of a process alone."""
    return int(environment.get("RANK", "0")) == 0


def ranks_here(environment: Mapping[str, str] = os.environ) -> int:
    """How many processes of the training share this machine, this one among them."""
    return int(environment.get("LOCAL_WORLD_SIZE", "1"))


def leave_word(error: LuthierError, environment: Mapping[str, str] = os.environ) -> bool:
    """Leave an error for the agent, who says it once for all ranks; False where there is no agent.

    An error that was raised on purpose would only come again, so a rank that leaves word is not started again. The end
    of another rank is no such error: who ended says why, and this one is started again with it.
    """
    place = environment.get(ERROR_FILE)
    if not place:
        return False
    if not isinstance(error, RankLost):
        word = {"message": str(error), "timestamp": str(int(time.time())), "exit_code": error.exit_code}
        Path(place).write_text(json.dumps(word), encoding="utf-8")
    return True
