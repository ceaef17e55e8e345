"""Confinement of a process that parses hostile bytes, as far as the kernel allows (Linux).

It gives up new privileges and the network. It keeps what its user may read: that needs a container or a user of its
own (docs/hospital-it.md).
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

_GONE = 7  # exit status of the process that tries; a Python that fails has 1
_PR_SET_NO_NEW_PRIVS = 38  # prctl(2)
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000  # unshare(2)


def confine() -> bool:
    """Gives up new privileges and the network, for this process and those it starts; before it starts a thread.

    A namespace without a network is one's own to make for root; others need a user namespace around it, which some
    distributions forbid.

    Returns:
        Whether the network is gone. Unix sockets in the file system stay within reach.
    """
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, *(ctypes.c_ulong(value) for value in (1, 0, 0, 0)))
        return any(libc.unshare(flags) == 0 for flags in (_CLONE_NEWNET, _CLONE_NEWUSER | _CLONE_NEWNET))
    except (OSError, AttributeError):  # not Linux
        return False


def workers_have_no_network() -> bool:
    """Tries in a process of its own whether `confine` takes the network away on this machine."""
    here = str(Path(__file__).parents[2])
    start = "import sys; sys.path.insert(0, sys.argv[1]); from client.intake.sandbox.confinement import confine"
    code = f"{start}; exit({_GONE} * confine())"
    done = subprocess.run(  # noqa: S603 - this interpreter and our own text
        [sys.executable, "-P", "-c", code, here], stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=False
    )
    return done.returncode == _GONE
