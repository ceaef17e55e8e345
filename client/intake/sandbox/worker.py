"""The process that touches hostile bytes: `python -m client.intake.sandbox.worker`, started and watched by `decode`.

It reads requests on stdin and answers on what was stdout; both are frames of JSON and raw pixels, never pickle.
Whatever a library prints (pydicom's warnings quote header values) goes to /dev/null, whatever it raises becomes a
code, it can write no file and leave no core, and it dies at its time limit even inside C code.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from client.intake.sandbox.confinement import confine
from client.intake.sandbox.process import limit, silence
from client.intake.task import Limits, Settings, Task
from client.quarantine import Code, Refused
from ghostnet.errors import GhostNetError, MissingDependencyError, SiteError
from ghostnet.plan.toml import read_table

FRAME = struct.Struct(">II")
"""Lengths of the JSON and of the part with pixels that follow."""


Answer = tuple[dict[str, Any], bytes]


def main() -> None:
    """Serves until stdin closes."""
    replies = silence()
    confine()
    requests = sys.stdin.buffer
    try:
        first = json.loads(requests.readline())
        limits = read_table(Limits, first["limits"], source="worker", error=SiteError)
        answer = _preparer(first["settings"], limits, replies) if first["settings"] else _read_headers
    except ImportError as error:  # a missing library is said, not a crash
        library = error.name or "that decodes images"
        _send(replies, {"missing": f"the library {library} is not installed; install ghostnet's dependencies"})
        return
    except GhostNetError as error:  # our own words: no file was opened yet
        _send(replies, {"missing" if isinstance(error, MissingDependencyError) else "unfit": str(error)})
        return
    limit(memory_bytes=limits.memory_bytes, file_bytes=0)
    _send(replies, {"ready": True})
    for line in requests:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, request["seconds"])  # the parent kills first; this if it is gone
        header, body = _coded(answer, request)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _send(replies, header, body)


def _preparer(raw_settings: dict[str, Any], limits: Limits, replies: BinaryIO) -> Callable[[dict[str, Any]], Answer]:
    """Returns a function that answers a request for a prepared file."""
    from client.deidentify.profile import check_allow_list
    from client.intake.sandbox.prepare import prepare_file, warm_up

    check_allow_list()
    settings = read_table(Settings, raw_settings, source="worker", error=SiteError)
    warm_up(settings)

    def decoded() -> None:
        signal.setitimer(signal.ITIMER_REAL, 1.5 * limits.prepare_s * settings.frames_per_file)
        _send(replies, {"decoded": True})

    def answer(request: dict[str, Any]) -> Answer:
        done = prepare_file(task_from_dict(request["task"]), settings, limits, decoded=decoded)
        header = {
            "record": asdict(done.record),
            "blanked": done.blanked,
            "patient_id": done.patient_id,
            "identifiers": done.identifiers,
        }
        return header, done.planes.tobytes() + (b"" if done.thumbnails is None else done.thumbnails.tobytes())

    return answer


def _read_headers(request: dict[str, Any]) -> Answer:
    """Answers a request for names that a header holds."""
    return _read_patient(request) if "patient" in request else _list_dicomdir(request)


def _read_patient(request: dict[str, Any]) -> Answer:
    from pydicom import dcmread

    from client.intake.patient_id import patient_id

    dataset = dcmread(request["patient"], stop_before_pixels=True, specific_tags=["PatientID", "SpecificCharacterSet"])
    return {"patient_id": patient_id(dataset)}, b""


def _list_dicomdir(request: dict[str, Any]) -> Answer:
    """The files that a DICOMDIR lists, as paths with "/" that NUL separates."""
    from pydicom import dcmread

    dataset = dcmread(request["dicomdir"], specific_tags=["DirectoryRecordSequence"])
    parts = [record.get("ReferencedFileID") for record in dataset.get("DirectoryRecordSequence") or ()]
    names = ["/".join([part] if isinstance(part, str) else part) for part in parts if part]
    return {"listed": len(names)}, "\0".join(names).encode("utf-8", "replace")


def task_to_dict(task: Task) -> dict[str, Any]:
    """A task as JSON can hold it."""
    mask = os.fspath(task.mask) if task.mask else None
    return asdict(task) | {"path": os.fspath(task.path), "mask": mask}


def task_from_dict(values: dict[str, Any]) -> Task:
    """The task that `task_to_dict` wrote."""
    boxes = None if values["boxes"] is None else tuple((x0, y0, x1, y1) for x0, y0, x1, y1 in values["boxes"])
    paths = {"path": Path(values["path"]), "mask": Path(values["mask"]) if values["mask"] else None}
    return Task(**(values | paths | {"boxes": boxes}))


def _coded(answer: Callable[[dict[str, Any]], Answer], request: dict[str, Any]) -> Answer:
    try:
        return answer(request)
    except Refused as refusal:
        return {"code": refusal.code.value}, b""
    except MemoryError:
        return {"code": Code.MEMORY.value}, b""
    except BaseException:  # noqa: BLE001 - decoders raise anything, Rust panics included, and the text may be PHI
        return {"code": Code.DECODE.value}, b""


def _send(replies: BinaryIO, header: dict[str, Any], body: bytes = b"") -> None:
    text = json.dumps(header).encode()
    replies.write(FRAME.pack(len(text), len(body)) + text + body)
    replies.flush()


if __name__ == "__main__":
    main()
