"""`ghostnet doctor`: what this machine has and lacks, in words."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from dataclasses import dataclass

import torch

from client.deidentify.profile import EDITION, ROWS, check_allow_list
from client.intake.sandbox.confinement import workers_have_no_network
from ghostnet.cli.arguments import AsJson
from ghostnet.cli.console import results
from ghostnet.cli.roles import ROLES
from ghostnet.errors import GhostNetError, MissingDependencyError, install_line

NEEDED_DISK_GB = 2
LIBJPEG = "decodes JPEG of 12 bits (GPL-3.0): pip install pylibjpeg-libjpeg; without it such files are left out"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    name: str
    good: bool
    required: bool
    detail: str


def doctor(as_json: AsJson = False) -> None:
    """Say what is missing on this machine and what to do about it.

    Says of each role (an extra: site, coordinator, simulate, ...) what it lacks here. Exit code 12 when something is
    missing that every role needs, or that an installed role needs beside its packages.
    """
    findings = examine()
    if as_json:
        results.print_json(data=[vars(finding) for finding in findings])
    else:
        for finding in findings:
            mark = "ok     " if finding.good else "MISSING" if finding.required else "absent "
            results.print(f"{mark} {finding.name}: {finding.detail}", soft_wrap=True)
    missing = [finding.name for finding in findings if finding.required and not finding.good]
    if missing:
        raise MissingDependencyError(f"missing: {', '.join(missing)}; see the lines above")


def examine() -> list[Finding]:
    """Looks at Python, torch, the GPU, the disk, Flower's telemetry switch, and the roles that are installed."""
    gpu = torch.cuda.is_available()
    free_gb = shutil.disk_usage(".").free / 1e9
    told = os.environ.get("FLWR_TELEMETRY_ENABLED") != "0"
    return [
        Finding(name="python", good=True, required=True, detail=platform.python_version()),
        Finding(
            name="torch", good=True, required=True, detail=f"{torch.__version__}, {torch.get_num_threads()} threads"
        ),
        Finding(
            name="gpu",
            good=gpu,
            required=False,
            detail=torch.cuda.get_device_name(0) if gpu else "none; training runs on the CPU",
        ),
        *[_role(extra) for extra in ROLES],
        *_hospital(),
        Finding(
            name="disk",
            good=free_gb > NEEDED_DISK_GB,
            required=True,
            detail=f"{free_gb:.0f} GB free, {NEEDED_DISK_GB} needed",
        ),
        Finding(
            name="telemetry",
            good=not told,
            required=False,
            detail="Flower's telemetry is on; set FLWR_TELEMETRY_ENABLED=0" if told else "off",
        ),
    ]


def _hospital() -> list[Finding]:
    """The checks that only a hospital needs."""
    if ROLES["site"].lacks():
        return []
    libjpeg = importlib.util.find_spec("libjpeg") is not None
    detail = "decodes JPEG of 12 bits" if libjpeg else LIBJPEG
    return [Finding(name="libjpeg", good=libjpeg, required=False, detail=detail), _allow_list(), _network()]


def _allow_list() -> Finding:
    """True if the kept header attributes have been checked against the standard's table."""
    try:
        check_allow_list()
        good, detail = True, f"PS3.15 {EDITION}, {ROWS} attributes: none of them is kept of a header"
    except GhostNetError as error:
        good, detail = False, str(error)
    return Finding(name="de-identification", good=good, required=True, detail=detail)


def _network() -> Finding:
    """True if image workers, which parse hostile bytes, can be kept off the network."""
    gone = workers_have_no_network()
    blocked = "keep the network: this kernel lets no process give it up; block the site's user by firewall"
    return Finding(name="image workers", good=gone, required=False, detail="give up the network" if gone else blocked)


def _role(extra: str) -> Finding:
    role = ROLES[extra]
    lacks = role.lacks()
    remedy = f"; it lacks {', '.join(lacks)}: {install_line(extra)}" if lacks else ""
    return Finding(name=extra, good=not lacks, required=False, detail=role.purpose + remedy)
