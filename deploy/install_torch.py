"""Installs torch into the environment that runs this file: a CPU build where there is no GPU, CUDA where there is one.

Linux wheels of torch on PyPI carry CUDA (several GB with what they need); the CPU builds live on an index of their
own. That index is asked for torch and nothing else (`--no-deps`, `--index-url`), so that no other package can come
from it. pip's configured sources are asked first: where they hold a CPU build, the index is not needed.

    python deploy/install_torch.py             # GHOSTNET_TORCH=cpu or cuda overrules the detection
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints.txt"


def main() -> int:
    """Tries each source in turn; returns the exit code."""
    version = pinned_version(CONSTRAINTS.read_text(encoding="utf-8"))
    build = os.environ.get("GHOSTNET_TORCH") or ("cuda" if has_gpu() else "cpu")
    if build not in ("cpu", "cuda"):
        print(f"GHOSTNET_TORCH = {build!r} is neither cpu nor cuda; set one of them, or nothing", file=sys.stderr)
        return 2
    if is_installed(version, build):
        return 0
    attempts = pip_arguments(version, build=build, platform=sys.platform)
    for number, arguments in enumerate(attempts, start=1):
        last = number == len(attempts)
        print(f"torch {version} for {build}: pip install {' '.join(arguments)}", file=sys.stderr)
        if pip_install(arguments, quiet=not last) == 0:
            return 0
        if not last:
            print("  not there; trying the next source", file=sys.stderr)
    return 1


def pinned_version(constraints: str) -> str:
    """The torch version of constraints.txt."""
    found = re.search(r"^torch==([0-9.]+)", constraints, flags=re.MULTILINE)
    if found is None:
        raise ValueError("constraints.txt pins no torch; add a line such as torch==2.13.0")
    return found.group(1)


def has_gpu() -> bool:
    """Whether this machine has an NVIDIA GPU that its driver can see."""
    if Path("/dev/nvidia0").exists():
        return True
    command = shutil.which("nvidia-smi")
    if command is None:
        return False
    listing = subprocess.run([command, "-L"], capture_output=True, text=True, check=False)  # noqa: S603
    return listing.returncode == 0 and "GPU" in listing.stdout


def is_installed(version: str, build: str) -> bool:
    """Whether the wanted torch is here already; any build of the version is good enough for a CPU."""
    try:
        here = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return False
    return here.partition("+")[0] == version and not (build == "cuda" and here.endswith("+cpu"))


def pip_arguments(version: str, *, build: str, platform: str) -> list[list[str]]:
    """What to give to `pip install`, best first; the last one takes whatever PyPI has for this platform."""
    anything = [f"torch=={version}"]
    if platform != "linux":
        return [anything]
    if build == "cuda":  # a +cpu build, where one is at hand, would sort above the CUDA one
        return [[f"torch=={version},!={version}+cpu"], anything]
    cpu = f"torch=={version}+cpu"
    from_index = ["--no-deps", "--index-url", CPU_INDEX, "--timeout", "20", "--retries", "1", cpu]
    return [["--no-deps", cpu], from_index, anything]


def pip_install(arguments: list[str], *, quiet: bool) -> int:
    """Runs pip in this environment; its error lines are shown where there is nothing left to try."""
    command = [sys.executable, "-m", "pip", "install", "--only-binary=:all:", *arguments]
    return subprocess.run(command, check=False, stderr=subprocess.DEVNULL if quiet else None).returncode  # noqa: S603


if __name__ == "__main__":
    sys.exit(main())
