"""A real PACS for tests: Orthanc (Debian's orthanc and orthanc-dicomweb) in a network namespace of the test's own.

Orthanc 1.10 listens on every address whatever it is told, so it is only ever started where there is none but loopback.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

HTTP_PORT, DICOM_PORT, MOVE_PORT = 18042, 14242, 11112
AE_TITLE, OUR_AE_TITLE = "ORTHANC", "GHOSTNET"
_PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


def namespace() -> list[str] | str:
    """The command that gives a process a network of its own, or why there is none."""
    for command in (["unshare", "--net"], ["unshare", "--user", "--map-root-user", "--net"]):
        with contextlib.suppress(OSError):
            if (
                subprocess.run([*command, "ip", "link", "set", "lo", "up"], capture_output=True, timeout=20).returncode
                == 0
            ):
                return command
    return "this machine gives no network namespace (unshare --net), or has no `ip`"


def why_not() -> str:
    """Why no Orthanc can be started here; "" if one can."""
    if executable() is None:
        return "Orthanc is not installed (apt-get install orthanc orthanc-dicomweb)"
    if not _PLUGIN.is_file():
        return "Orthanc has no DICOMweb (apt-get install orthanc-dicomweb)"
    found = namespace()
    return found if isinstance(found, str) else ""


def executable() -> str | None:
    """Debian puts it where only root looks."""
    return shutil.which("Orthanc", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin")


def run_isolated(script: Path, *arguments: str, timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Runs a Python script inside a network namespace, with loopback only."""
    command = namespace()
    if isinstance(command, str):
        raise RuntimeError(command)  # noqa: TRY004
    inside = ["sh", "-c", 'ip link set lo up && exec "$@"', "sh", sys.executable, str(script), *arguments]
    here = str(Path(__file__).resolve().parent.parent)
    return subprocess.run(
        [*command, *inside], capture_output=True, text=True, timeout=timeout_s, env=os.environ | {"PYTHONPATH": here}
    )


class Orthanc:
    """One server, with its own storage, that can be killed and started again."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        if len(Path("/proc/self/net/route").read_text().splitlines()) > 1:  # loopback has no route of its own
            raise RuntimeError("there is a network here, which Orthanc would listen on")
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        settings = {
            "Name": "GHOSTNET-TEST",
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "HttpPort": HTTP_PORT,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomAet": AE_TITLE,
            "DicomPort": DICOM_PORT,
            "DicomCheckCalledAet": True,
            "DicomAlwaysAllowStore": True,
            "DicomAlwaysAllowFind": True,
            "DicomAlwaysAllowGet": True,
            "DicomAlwaysAllowMove": True,
            "DicomModalities": {"ghostnet": [OUR_AE_TITLE, "127.0.0.1", MOVE_PORT]},
            "Plugins": [str(_PLUGIN)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }
        self._configuration = folder / "orthanc.json"
        self._configuration.write_text(json.dumps(settings | changes))

    def start(self) -> None:
        """Starts it and waits until it answers."""
        program = executable()
        if program is None:
            raise RuntimeError(why_not())
        with (self._folder / "orthanc.log").open("ab") as log:
            self._process = subprocess.Popen(
                [program, str(self._configuration)], stdout=log, stderr=log, env=os.environ | {"TCP_NODELAY": "1"}
            )
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if self._answers():
                return
            time.sleep(0.05)
        raise RuntimeError((self._folder / "orthanc.log").read_text(errors="replace")[-2000:])

    def kill(self) -> None:
        """Ends it as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def store(self, data: bytes) -> None:
        """Adds one DICOM file (only where no password is asked for)."""
        request = urllib.request.Request(f"http://127.0.0.1:{HTTP_PORT}/instances", data=data, method="POST")
        with urllib.request.urlopen(request) as answer:
            answer.read()

    def __enter__(self) -> Orthanc:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _answers(self) -> bool:
        try:
            with (
                socket.create_connection(("127.0.0.1", HTTP_PORT), 1),
                socket.create_connection(("127.0.0.1", DICOM_PORT), 1),
            ):
                return True
        except OSError:
            return False


class TlsFront:
    """HTTPS in front of an Orthanc, as a hospital's proxy does it. (Orthanc's own, in Debian 12, dies of a
    null pointer in civetweb at the first connection.)
    """

    def __init__(self, certificate_and_key: Path) -> None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate_and_key)
        listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = listener.getsockname()[1]
        self._listener = context.wrap_socket(listener, server_side=True, do_handshake_on_connect=False)

    def __enter__(self) -> TlsFront:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._relay, args=(client,), daemon=True).start()

    def _relay(self, client: ssl.SSLSocket) -> None:
        with contextlib.suppress(OSError), client:
            client.do_handshake()
            with socket.create_connection(("127.0.0.1", HTTP_PORT)) as server:
                back = threading.Thread(target=_pump, args=(server, client), daemon=True)
                back.start()
                _pump(client, server)
                back.join()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_RDWR)
