"""The command line as tests call it: in the process of the tests, or in one of its own."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout

import pytest

from ghostnet.cli.main import main


def ghostnet(*arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs the command line in this process, from its arguments to its exit code.

    A process of its own takes 4 s for imports and its first epsilon, whatever the command; each command that is tested
    here is started once with `ghostnet_process` too.
    """
    given, stdout, stderr = [str(part) for part in arguments], io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(stdout), redirect_stderr(stderr):
        patch.delenv("GHOSTNET_DEBUG", raising=False)
        patch.setattr(sys, "argv", ["ghostnet", *given])
        with pytest.raises(SystemExit) as ended:
            main()
    code = int(ended.value.code or 0)
    return _checked(subprocess.CompletedProcess(given, code, stdout.getvalue(), stderr.getvalue()), check)


def ghostnet_process(*arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs the command line in a process of its own, with two threads and so with two workers of a simulation."""
    command = [sys.executable, "-m", "ghostnet.cli", *map(str, arguments)]
    two_cores = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=two_cores)  # noqa: S603
    return _checked(done, check)


def _checked(done: subprocess.CompletedProcess[str], check: bool) -> subprocess.CompletedProcess[str]:
    if check and done.returncode:
        pytest.fail(f"{done.args} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done
