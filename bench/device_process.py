"""A command and all that it starts: ended together when the time is over. A compiler or a test that lived on would be measured with everything after it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence
from typing import Any


def finish(command: Sequence[str], timeout_s: float, **how: Any) -> subprocess.CompletedProcess[str]:
    """subprocess.run, but what the command started ends with it. Raises subprocess.TimeoutExpired."""
    process = subprocess.Popen(command, text=True, start_new_session=True, **how)
    try:
        out, errors = process.communicate(timeout=max(0.0, timeout_s))
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    return subprocess.CompletedProcess(command, process.returncode, out, errors)
