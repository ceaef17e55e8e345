"""Worker processes for hostile files: as many as there are cores, each replaced when it crashes or hangs.

The parent never parses an image file. It hands out paths and takes back frames whose sizes and values it checks: what
a worker answers can be wrong about that worker's images, and nothing else of the parent. A worker that a file takes
over is still a process of the site's user, under limits of memory and time: it can read what that user can read, other
patients' files and the site's keys among them, and delete or rename them, though it can write no file and gain no
privilege. It has no network where `confinement` could take it away; elsewhere a firewall has to.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import select
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from client.deidentify.headers import record_from_dict
from client.deidentify.survivors import MAX_IDENTIFIER_CHARACTERS, MAX_IDENTIFIERS
from client.intake.sandbox.process import start_process
from client.intake.sandbox.worker import FRAME, task_to_dict
from client.intake.task import THUMBNAIL_SIDE, Limits, Prepared, Settings, Task
from client.quarantine import Code, Refused
from ghostnet.errors import MissingDependencyError, SiteError
from ghostnet.plan import ImageSpec

Outcome = Prepared | Code
Reply = TypeVar("Reply")
Item = TypeVar("Item")

# A text of a header may take 6 bytes a character in JSON.
_MAX_JSON = (1 << 16) + 8 * MAX_IDENTIFIERS * MAX_IDENTIFIER_CHARACTERS
_MAX_LISTED = 1 << 26  # bytes of the paths in a DICOMDIR
_MEGABYTE = 1 << 20
_FILES_WORTH_A_WORKER = 8  # a worker's imports cost as much as a few files
_ONE_THREAD = {  # a worker, because there is a worker a core
    f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "NUMEXPR")
}
# A decoder that fell over in a used worker may have been tripped by the file before it.
_WORTH_A_FRESH_WORKER = (Code.CRASHED, Code.MEMORY)


def _untimed(index: int, seconds: float) -> None:
    pass


def prepare_files(
    tasks: Sequence[Task],
    settings: Settings,
    *,
    limits: Limits,
    workers: int | None = None,
    timed: Callable[[int, float], None] = _untimed,
) -> Iterator[tuple[int, Outcome]]:
    """Prepares files in worker processes; yields (index of the task, its outcome) as they finish.

    Args:
        tasks: the files.
        settings: what each is prepared with.
        limits: what each may cost.
        workers: processes; None is one for each core this process may use, fewer for a handful of files.
        timed: told (index of the task, seconds until its worker had answered or was given up), from any thread.

    Raises:
        MissingDependencyError: a library that workers need is not installed.
        SiteError: no worker can be started.
    """
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, Outcome] | BaseException] = queue.SimpleQueue()
    for index in range(len(tasks)):
        todo.put(index)
    wanted = workers or min(usable_cores(), 1 + len(tasks) // _FILES_WORTH_A_WORKER)
    crew = [_Worker(settings, limits) for _ in range(min(wanted, len(tasks)))]
    threads = [threading.Thread(target=_serve, args=(worker, tasks, todo, done, timed), daemon=True) for worker in crew]
    for thread in threads:
        thread.start()
    try:
        for _ in tasks:
            outcome = done.get()
            if isinstance(outcome, BaseException):
                raise outcome
            yield outcome
    finally:
        with contextlib.suppress(queue.Empty):
            while True:
                todo.get_nowait()
        for worker in crew:
            worker.retire()
        for thread in threads:
            thread.join()
        for worker in crew:
            worker.stop()


def list_dicomdirs(paths: Sequence[Path], *, limits: Limits) -> list[tuple[str, ...]]:
    """The paths that each DICOMDIR lists, with "/" and as they stand there; none for one that cannot be read.

    Raises:
        MissingDependencyError: a library that workers need is not installed.
        SiteError: no worker can be started.
    """
    worker = _Worker(None, limits)
    try:
        return [worker.list(path) for path in paths]
    finally:
        worker.stop()


def read_patients(paths: Sequence[Path], *, limits: Limits) -> list[str]:
    """SENSITIVE: the PatientID of each DICOM file, as it is written; "" where it cannot be read.

    Raises:
        MissingDependencyError: a library that workers need is not installed.
        SiteError: no worker can be started.
    """
    if not paths:
        return []
    worker = _Worker(None, limits)
    try:
        return [worker.patient(path) for path in paths]
    finally:
        worker.stop()


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _serve(
    worker: _Worker,
    tasks: Sequence[Task],
    todo: queue.SimpleQueue[int],
    done: queue.SimpleQueue[tuple[int, Outcome] | BaseException],
    timed: Callable[[int, float], None],
) -> None:
    try:
        while True:
            try:
                index = todo.get_nowait()
            except queue.Empty:
                return
            used = worker.used
            outcome = worker.run(tasks[index])
            if used and outcome in _WORTH_A_FRESH_WORKER:
                timed(index, worker.seconds)
                outcome = worker.run(tasks[index])
            timed(index, worker.seconds)
            done.put((index, outcome))
    except BaseException as error:  # noqa: BLE001 - handed to the caller's thread, which raises it
        done.put(error)


class MalformedReply(ValueError):
    """A reply of another size, form or range than agreed: the worker is not to be trusted any more."""


class _Worker:
    """One worker process, started when first needed and replaced whenever it fails."""

    def __init__(self, settings: Settings | None, limits: Limits) -> None:
        self.used = False
        self.seconds = 0.0  # that the last request took
        self._settings = settings
        self._limits = limits
        self._process: subprocess.Popen[bytes] | None = None
        self._retired = False

    def run(self, task: Task) -> Outcome:
        """Prepares one file; a worker that does not answer in time, or not sensibly, is killed."""
        settings = self._settings
        if settings is None:
            raise SiteError("this worker reads headers only; give it settings")
        most = settings.frames_per_file * _frame_bytes(settings)

        def ask() -> Outcome:
            seconds = self._seconds(task.path, task.mask)
            header, body = self._asked({"task": task_to_dict(task)}, seconds, most)
            if header == {"decoded": True} and not body:
                header, body = self._read(self._limits.prepare_s * settings.frames_per_file, most)
            return _prepared(header, body, settings)

        return self._guarded(ask)

    def list(self, path: Path) -> tuple[str, ...]:
        """The paths that a DICOMDIR lists; none if it cannot be read."""

        def ask() -> tuple[str, ...]:
            header, body = self._asked({"dicomdir": os.fspath(path)}, self._seconds(path), _MAX_LISTED)
            return tuple(name for name in body.decode().split("\0") if name) if "code" not in header else ()

        listed = self._guarded(ask)
        return () if isinstance(listed, Code) else listed

    def patient(self, path: Path) -> str:
        """The PatientID of a DICOM file; "" if it cannot be read."""

        def ask() -> str:
            header, _ = self._asked({"patient": os.fspath(path)}, self._seconds(path), 0)
            return str(header.get("patient_id", ""))

        found = self._guarded(ask)
        return "" if isinstance(found, Code) else found

    def _guarded(self, ask: Callable[[], Reply]) -> Reply | Code:
        if self._process is None:
            self._start()
        self.used = True
        started = time.monotonic()
        outcome: Reply | Code
        try:
            outcome = ask()
        except TimeoutError:
            outcome = Code.TIMEOUT
        except (OSError, EOFError, ValueError, RecursionError):
            outcome = Code.CRASHED
        self.seconds = time.monotonic() - started
        if outcome in (Code.TIMEOUT, Code.CRASHED, Code.MEMORY):
            self.stop()
        return outcome

    def _seconds(self, *paths: Path | None) -> float:
        """The seconds that decoding may take, by the files' sizes as the file system says them; nothing is opened."""
        size = 0
        for path in paths:
            with contextlib.suppress(OSError):
                size += path.stat().st_size if path else 0
        limits = self._limits
        return min(limits.timeout_most_s, limits.timeout_s + limits.timeout_s_per_mb * size / _MEGABYTE)

    def retire(self) -> None:
        """Ends the process from another thread; `run` then returns."""
        self._retired = True
        process = self._process
        if process is not None:
            process.kill()

    def stop(self) -> None:
        """Ends the process and forgets it."""
        process, self._process, self.used = self._process, None, False
        if process is None:
            return
        process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # an unsent request may still sit in the pipe's buffer
                    pipe.close()
        process.wait()

    def _start(self) -> None:
        if self._retired:
            raise SiteError("the intake was stopped; start it again")
        self._process = start_process("client.intake.sandbox.worker", _ONE_THREAD)
        try:
            settings = None if self._settings is None else asdict(self._settings)
            self._write({"settings": settings, "limits": asdict(self._limits)})
            hello, _ = self._read(self._limits.startup_s, 0)
        except (OSError, EOFError, ValueError):
            self.stop()
            raise SiteError("no image worker can be started; run `ghostnet doctor` to see what is missing") from None
        if "missing" in hello or "unfit" in hello:
            self.stop()
            missing = hello.get("missing")
            raise MissingDependencyError(missing) if missing else SiteError(hello["unfit"])

    def _write(self, message: dict[str, Any]) -> None:
        if self._process is None or self._process.stdin is None:
            raise EOFError
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        self._process.stdin.flush()

    def _asked(self, request: dict[str, Any], seconds: float, most_bytes: int) -> tuple[dict[str, Any], bytes]:
        self._write(request | {"seconds": 1.5 * seconds})
        return self._read(seconds, most_bytes)

    def _read(self, timeout_s: float, most_bytes: int) -> tuple[dict[str, Any], bytes]:
        deadline = time.monotonic() + timeout_s
        json_size, body_size = FRAME.unpack(self._bytes(FRAME.size, deadline))
        if json_size > _MAX_JSON or body_size > most_bytes:
            raise MalformedReply
        header = json.loads(self._bytes(json_size, deadline))
        if not isinstance(header, dict):
            raise MalformedReply
        return header, self._bytes(body_size, deadline)

    def _bytes(self, size: int, deadline: float) -> bytes:
        if self._process is None or self._process.stdout is None:
            raise EOFError
        descriptor, parts = self._process.stdout.fileno(), bytearray()
        while len(parts) < size:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            part = os.read(descriptor, size - len(parts))
            if not part:
                raise EOFError
            parts += part
        return bytes(parts)


def _prepared(header: dict[str, Any], body: bytes, settings: Settings) -> Outcome:
    """Parses and checks a worker's answer.

    Raises:
        MalformedReply: it cannot be an answer.
    """
    if "code" in header:
        return Code(header["code"])
    frames, rest = divmod(len(body), _frame_bytes(settings))
    patient_id = header.get("patient_id")
    identifiers = _list_of(str, header.get("identifiers"), 0, MAX_IDENTIFIERS)
    too_long = any(len(identifier) > MAX_IDENTIFIER_CHARACTERS for identifier in identifiers)
    if rest or not frames or not isinstance(patient_id, str) or too_long:
        raise MalformedReply
    try:
        record = record_from_dict(header["record"])
    except (Refused, KeyError, TypeError):
        raise MalformedReply from None
    return Prepared(
        planes=_planes(body, frames, settings.image),
        record=record,
        blanked=_list_of(int, header.get("blanked"), frames, frames),
        patient_id=patient_id,
        identifiers=identifiers,
        thumbnails=_thumbnails(body, frames) if settings.thumbnails else None,
    )


def _planes(body: bytes, frames: int, image: ImageSpec) -> NDArray[np.float32]:
    shape = (frames, image.channels + image.mask_channels, image.size, image.size)
    planes = np.frombuffer(body, np.float32, count=math.prod(shape)).reshape(shape).copy()
    low = 0.0 if image.range == "[0,1]" else -1.0
    if not (low <= planes.min() and planes.max() <= 1):  # a NaN is not, either
        raise MalformedReply
    return planes


def _thumbnails(body: bytes, frames: int) -> NDArray[np.uint8]:
    shape = (frames, 2, THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    return np.frombuffer(body[-math.prod(shape) :], np.uint8).reshape(shape)


def _frame_bytes(settings: Settings) -> int:
    image = settings.image
    pictures = 2 * THUMBNAIL_SIDE**2 if settings.thumbnails else 0
    return 4 * (image.channels + image.mask_channels) * image.size**2 + pictures


def _list_of(kind: type[Item], values: object, least: int, most: int) -> tuple[Item, ...]:
    """The values of a JSON list of one type and as many items.

    Raises:
        MalformedReply: it is not one.
    """
    if not isinstance(values, list) or not least <= len(values) <= most or any(type(v) is not kind for v in values):
        raise MalformedReply
    return tuple(values)
