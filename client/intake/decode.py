"""Worker processes for hostile files: as many as there are cores, each replaced when it crashes or hangs.

The parent never parses an image file. It hands out paths and takes back frames whose sizes and values it checks, so
that even a worker taken over by a file can only refuse, or make up, that worker's images.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import client
import ghostnet
from client.deidentify.headers import record_from_dict
from client.intake.quarantine import Code, Refused
from client.intake.task import Limits, Prepared, Settings, Task
from client.intake.worker import FRAME
from ghostnet.errors import MissingDependencyError, SiteError

Outcome = Prepared | Code

_MOST_JSON = 1 << 16
_FILES_WORTH_A_WORKER = 8  # a worker's imports cost as much as a few files
_KEPT_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR")
# A decoder that fell over in a used worker may have been tripped by the file before it.
_WORTH_A_FRESH_WORKER = (Code.CRASHED, Code.MEMORY)


def prepare_files(
    tasks: Sequence[Task], settings: Settings, *, limits: Limits, workers: int | None = None
) -> Iterator[tuple[int, Outcome]]:
    """Prepares files in worker processes; yields (index of the task, its outcome) as they finish.

    Args:
        tasks: the files.
        settings: what each is prepared with.
        limits: what each may cost.
        workers: processes; None is one for each core this process may use, fewer for a handful of files.

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
    threads = [threading.Thread(target=_serve, args=(worker, tasks, todo, done), daemon=True) for worker in crew]
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


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _serve(
    worker: _Worker,
    tasks: Sequence[Task],
    todo: queue.SimpleQueue[int],
    done: queue.SimpleQueue[tuple[int, Outcome] | BaseException],
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
                outcome = worker.run(tasks[index])
            done.put((index, outcome))
    except BaseException as error:  # noqa: BLE001 - handed to the caller's thread, which raises it
        done.put(error)


class _Nonsense(ValueError):
    """A reply of another size, form or range than agreed: the worker is not to be trusted any more."""


class _Worker:
    """One worker process, started when first needed and replaced whenever it fails."""

    def __init__(self, settings: Settings, limits: Limits) -> None:
        self.used = False
        self._settings = settings
        self._limits = limits
        self._process: subprocess.Popen[bytes] | None = None
        self._retired = False

    def run(self, task: Task) -> Outcome:
        """Prepares one file; a worker that does not answer in time, or not sensibly, is killed."""
        if self._process is None:
            self._start()
        self.used = True
        request = {"path": os.fspath(task.path), "mask": os.fspath(task.mask) if task.mask else None}
        try:
            self._write(request)
            outcome = self._outcome(*self._read(self._limits.timeout_s))
        except TimeoutError:
            outcome = Code.TIMEOUT
        except (OSError, EOFError, ValueError, RecursionError):
            outcome = Code.CRASHED
        if outcome in (Code.TIMEOUT, Code.CRASHED, Code.MEMORY):
            self.stop()
        return outcome

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
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-B", "-m", "client.intake.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
            cwd="/",
            start_new_session=True,  # Ctrl-C is the parent's to handle
        )
        try:
            self._write({"settings": asdict(self._settings), "limits": asdict(self._limits)})
            hello, _ = self._read(self._limits.startup_s)
        except (OSError, EOFError, ValueError):
            self.stop()
            raise SiteError("no image worker can be started; run `ghostnet doctor` to see what is missing") from None
        if "missing" in hello:
            self.stop()
            raise MissingDependencyError(
                f"the library {hello['missing']} is not installed; install ghostnet's dependencies"
            )

    def _write(self, message: dict[str, Any]) -> None:
        if self._process is None or self._process.stdin is None:
            raise EOFError
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        self._process.stdin.flush()

    def _read(self, timeout_s: float) -> tuple[dict[str, Any], bytes]:
        deadline = time.monotonic() + timeout_s
        json_size, body_size = FRAME.unpack(self._bytes(FRAME.size, deadline))
        image = self._settings.image
        most = 4 * (image.channels + image.mask_channels) * image.size**2
        if json_size > _MOST_JSON or body_size not in (0, most):
            raise _Nonsense
        header = json.loads(self._bytes(json_size, deadline))
        if not isinstance(header, dict):
            raise _Nonsense
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

    def _outcome(self, header: dict[str, Any], body: bytes) -> Outcome:
        if "code" in header:
            return Code(header["code"])
        image = self._settings.image
        shape = (image.channels + image.mask_channels, image.size, image.size)
        planes = np.frombuffer(body, np.float32).reshape(shape).copy()
        blanked, patient_id = header.get("blanked"), header.get("patient_id")
        low = 0.0 if image.range == "[0,1]" else -1.0
        if not isinstance(blanked, int) or not isinstance(patient_id, str):
            raise _Nonsense
        if not (np.isfinite(planes).all() and low <= planes.min() and planes.max() <= 1):
            raise _Nonsense
        try:
            record = record_from_dict(header["record"])
        except (Refused, KeyError, TypeError):
            raise _Nonsense from None
        return Prepared(planes=planes, record=record, blanked=blanked, patient_id=patient_id)


def _environment() -> dict[str, str]:
    """Little is passed on; one thread a worker, because there is a worker a core."""
    here = [str(Path(str(package.__file__)).parent.parent) for package in (client, ghostnet)]
    kept = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    threads = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "NUMEXPR")}
    return kept | threads | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(here + [p for p in sys.path if p]))}
