"""The process that touches hostile bytes: `python -m client.intake.worker`, started and watched by `decode`.

It reads requests on stdin and answers on what was stdout; both are frames of JSON and raw float32, never pickle.
Whatever a library prints (pydicom's warnings quote header values) goes to /dev/null, whatever it raises becomes a
code, it can write no file and leave no core, and it dies at its time limit even inside C code.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import struct
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from client.intake.quarantine import Code, Refused
from client.intake.task import Limits, Prepared, Settings, Task
from ghostnet.errors import MissingDependencyError, SiteError
from ghostnet.tables import read_table

FRAME = struct.Struct(">II")
"""Lengths of the JSON and of the float32 part that follow."""


def main() -> None:
    """Serves until stdin closes."""
    replies = _silence()
    requests = sys.stdin.buffer
    try:
        from client.intake.prepare import prepare_file, warm_up  # here, so that a missing library is said, not a crash
    except ImportError as error:
        _send(replies, {"missing": error.name or "that decodes images"})
        return
    settings, limits = _read_settings(json.loads(requests.readline()))
    try:
        warm_up(settings)
    except MissingDependencyError:
        _send(replies, {"missing": "rapidocr-onnxruntime"})
        return
    _limit(limits.memory_bytes)
    _send(replies, {"ready": True})
    for line in requests:
        request = json.loads(line)
        task = Task(path=Path(request["path"]), mask=Path(request["mask"]) if request["mask"] else None)
        signal.setitimer(signal.ITIMER_REAL, limits.timeout_s * 1.5)  # the parent kills first; this if it is gone
        header, planes = _answer(prepare_file, task, settings, limits)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _send(replies, header, planes)


def _answer(
    prepare: Callable[[Task, Settings, Limits], Prepared], task: Task, settings: Settings, limits: Limits
) -> tuple[dict[str, Any], bytes]:
    try:
        done = prepare(task, settings, limits)
    except Refused as refusal:
        return {"code": refusal.code.value}, b""
    except MemoryError:
        return {"code": Code.MEMORY.value}, b""
    except BaseException:  # noqa: BLE001 - decoders raise anything, Rust panics included, and the text may be PHI
        return {"code": Code.DECODE.value}, b""
    header = {"record": asdict(done.record), "blanked": done.blanked, "patient_id": done.patient_id}
    return header, done.planes.tobytes()


def _silence() -> BinaryIO:
    """Keeps stdout for replies alone; prints, warnings and logs of libraries, C ones too, go to /dev/null."""
    replies = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    return replies


def _read_settings(raw: dict[str, Any]) -> tuple[Settings, Limits]:
    settings = read_table(Settings, raw["settings"], source="worker", error=SiteError)
    return settings, read_table(Limits, raw["limits"], source="worker", error=SiteError)


def _limit(memory_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    statm = Path("/proc/self/statm")
    if statm.exists():
        idle = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (idle + memory_bytes, idle + memory_bytes))


def _send(replies: BinaryIO, header: dict[str, Any], body: bytes = b"") -> None:
    text = json.dumps(header).encode()
    replies.write(FRAME.pack(len(text), len(body)) + text + body)
    replies.flush()


if __name__ == "__main__":
    main()
