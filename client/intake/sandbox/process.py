"""A process of its own for what comes from outside: how it is started, and what it takes on itself."""

from __future__ import annotations

import logging
import os
import resource
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, Literal

import client
import ghostnet

_KEPT_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR")

Module = Literal["client.intake.sandbox.worker", "client.intake.pacs.worker"]


def start_process(module: Module, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Starts `python -m module` behind two pipes; whoever starts it ends it.

    Args:
        module: which one.
        environment: variables of its own. Of those of the person who starts it few are passed on: no proxy and no
            authorities.
    """
    here = [str(Path(str(package.__file__)).parent.parent) for package in (client, ghostnet)]
    path = os.pathsep.join(dict.fromkeys(here + [entry for entry in sys.path if entry]))
    kept = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    return subprocess.Popen(  # noqa: S603 - this interpreter and our own modules
        [sys.executable, "-P", "-B", "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**kept, **environment, "PYTHONPATH": path},
        cwd="/",
        start_new_session=True,  # Ctrl-C is the parent's to handle
    )


def silence() -> BinaryIO:
    """Keeps stdout for answers alone, which go to what is returned.

    Prints, warnings and logs of libraries, C ones too, go to /dev/null.
    """
    answers = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    return answers


def limit(*, memory_bytes: int, file_bytes: int) -> None:
    """Bounds this process from now on; it leaves no core either.

    Args:
        memory_bytes: beyond what it has now.
        file_bytes: of any file that it writes; 0 for none.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    statm = Path("/proc/self/statm")
    if statm.exists():
        most = int(statm.read_text().split()[0]) * resource.getpagesize() + memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
