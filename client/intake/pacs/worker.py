"""The process that talks to the PACS: `python -m client.intake.pacs.worker`, started and watched by `pacs`.

What a PACS sends is as untrusted as a file, and libraries log and quote it. So it happens here: whatever they print
goes to /dev/null, whatever they raise becomes a cause from a closed list, and memory and file sizes are bounded.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from client.intake.pacs.faults import Fault, PacsFault
from client.intake.pacs.retrieval import PHASES, Archive, Counts, Wanted, fetch
from client.intake.pacs.store import PacsFiles, Withdrawn
from client.intake.sandbox.process import limit, silence
from client.pacs_config import PacsSpec
from ghostnet.errors import SiteError
from ghostnet.plan.toml import read_table

_MEMORY_BEYOND_FILES = 1 << 30
_COPIES = 3  # of one file in memory, at most: a data set grows by doubling


def main() -> None:
    """Fetches what the request on stdin names; says where it is, and how it ended, on what was stdout."""
    send = _sender(silence())
    request = json.loads(sys.stdin.buffer.readline())
    spec = read_table(PacsSpec, request["spec"], source="worker", error=SiteError)
    wanted = request["wanted"] and {study: frozenset(only) for study, only in request["wanted"].items()}
    try:
        archive = _archive(spec, request["credentials"])
        limit(
            memory_bytes=_COPIES * spec.file_bytes + _MEMORY_BEYOND_FILES,
            file_bytes=max(spec.file_bytes, 1 << 24),  # lists of a study's images are files too
        )
        counts = _fetch(archive, wanted, spec, _files(request, spec), send)
    except ImportError as error:
        send({"missing": error.name or "that speaks to a PACS"})
    except PacsFault as fault:
        send({"fault": fault.fault.value})
    except MemoryError:
        send({"fault": Fault.MEMORY.value})
    except BaseException:  # noqa: BLE001 - libraries raise anything, and the text may hold identifiers
        send({"fault": Fault.CRASHED.value})
    else:
        send({"counts": asdict(counts)})
    os._exit(0)  # threads of associations that did not end must not hold it up


def _files(request: dict[str, Any], spec: PacsSpec) -> PacsFiles:
    withdrawn = request["withdrawn"]
    return PacsFiles(
        Path(request["folder"]),
        file_bytes=spec.file_bytes,
        total_bytes=spec.total_bytes,
        withdrawn=Withdrawn(key=bytes.fromhex(withdrawn["key"]), hashes=frozenset(withdrawn["hashes"])),
    )


def _fetch(
    archive: Archive, wanted: Wanted | None, spec: PacsSpec, files: PacsFiles, send: Callable[[dict[str, Any]], None]
) -> Counts:
    def tell(phase: str, done: int, total: int) -> None:
        send({"phase": PHASES.index(phase), "done": done, "total": total})

    with files.locked():
        try:
            return fetch(
                archive,
                wanted,
                files,
                tell,
                modalities=spec.modalities,
                study_date=spec.study_date,
                patience_s=spec.patience_s,
            )
        finally:
            archive.close()


def _archive(spec: PacsSpec, credentials: str) -> Archive:
    if spec.protocol == "dicomweb":
        from client.intake.pacs.dicomweb import DicomWeb

        return DicomWeb(spec, credentials)
    from client.intake.pacs.dimse import Dimse

    return Dimse(spec)


def _sender(answers: BinaryIO) -> Callable[[dict[str, Any]], None]:
    """Returns a function that sends a message to the parent; without a parent, it ends the process."""

    def send(message: dict[str, Any]) -> None:
        try:
            answers.write(json.dumps(message).encode() + b"\n")
            answers.flush()
        except OSError:
            os._exit(1)

    return send


if __name__ == "__main__":
    main()
