"""Servers that lie, flood or stall: nothing they name becomes a path, and nothing they send lasts for ever."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pynetdicom import AE, evt

from client.intake.pacs import dicomweb, retrieval
from client.intake.pacs.dicomweb import DicomWeb
from client.intake.pacs.dimse import Dimse
from client.intake.pacs.faults import Fault, FileRefused, PacsFault
from client.intake.pacs.fetch import fetch_studies
from client.intake.pacs.retrieval import Archive, Counts, fetch
from client.intake.pacs.store import PacsFiles, is_uid
from client.pacs_config import PacsSpec
from ghostnet.errors import SiteError
from ghostnet.progress import silent
from tests.client.intake.dicom_files import SOP_CLASS, dicom, picture

STUDY, SERIES = "1.2.3", "1.2.3.4"
EVIL = ("../../evil", "..", ".", "1..2", "/etc/evil", "1.2/../../evil", "1.2\n", "1.2.\u0663", "", "1" * 65)

Answer = Callable[[BaseHTTPRequestHandler], None]


def file_of(instance: str, side: int = 20) -> bytes:
    """A DICOM file."""
    dataset = dicom(picture(1, (side, side)), StudyInstanceUID=STUDY, SeriesInstanceUID=SERIES)
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = instance
    file = io.BytesIO()
    pydicom.dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


def listing(*instances: str, series: str = SERIES) -> bytes:
    """A QIDO-RS answer."""
    return json.dumps(
        [{"0020000E": {"vr": "UI", "Value": [series]}, "00080018": {"vr": "UI", "Value": [name]}} for name in instances]
    ).encode()


def body(content: bytes, kind: str = "application/dicom+json", status: int = 200, **headers: str) -> Answer:
    """An ordinary answer."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in ({"Content-Type": kind, "Content-Length": str(len(content))} | headers).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(content)

    return answer


def parts(*files: bytes) -> Answer:
    """A WADO-RS answer."""
    text = b"".join(b"--b\r\nContent-Type: application/dicom\r\n\r\n" + file + b"\r\n" for file in files) + b"--b--\r\n"
    return body(text, 'multipart/related; type="application/dicom"; boundary="b"')


def dripping(file: bytes, delay_s: float) -> Answer:
    """A WADO-RS answer that comes byte by byte."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", MULTIPART)
        handler.end_headers()
        with contextlib.suppress(OSError):
            for byte in PART_START + file + b"\r\n--b--\r\n":
                handler.wfile.write(bytes([byte]))
                time.sleep(delay_s)

    return answer


def endless(start: bytes, chunk: bytes, kind: str) -> Answer:
    """An answer that goes on until the client hangs up."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", kind)
        handler.end_headers()
        with contextlib.suppress(OSError):
            handler.wfile.write(start)
            while True:
                handler.wfile.write(chunk)

    return answer


MULTIPART = 'multipart/related; type="application/dicom"; boundary="b"'
PART_START = b"--b\r\nContent-Type: application/dicom\r\n\r\n"


@contextlib.contextmanager
def web_server(answer: Callable[[str], Answer]) -> Iterator[tuple[str, list[str]]]:
    """A server on loopback that answers by path; gives its address and the paths that were asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            with contextlib.suppress(OSError):
                answer(self.path)(self)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/pacs", asked
    finally:
        server.shutdown()
        server.server_close()


def serving(images: Answer, file: Callable[[str], Answer]) -> Callable[[str], Answer]:
    """A service with one study: what it lists first (and nothing on later pages), and what it sends."""

    def answer(path: str) -> Answer:
        if path.startswith("/pacs/studies?"):
            return body(b"[]")
        if "/series/" in path:
            return file(path.rsplit("/", 1)[1])
        return images if "offset=0" in path or "offset" not in path else body(b"[]")

    return answer


def run(archive: Archive, folder: Path, *, file_bytes: int = 1 << 20, total_bytes: int = 1 << 30) -> Counts:
    """Fetches the study."""
    files = PacsFiles(folder, file_bytes=file_bytes, total_bytes=total_bytes)
    try:
        with files.locked():
            return fetch(archive, {STUDY: frozenset()}, files, silent, modalities=(), study_date="", patience_s=0.5)
    finally:
        archive.close()


def web(url: str, **changes: Any) -> DicomWeb:
    """A client of it."""
    return DicomWeb(PacsSpec(protocol="dicomweb", url=url, **({"timeout_s": 3.0} | changes)), "")


def stored(folder: Path) -> list[str]:
    """What is on disk, apart from the lock."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.dcm"))


@pytest.mark.parametrize("uid", EVIL)
def test_what_is_no_uid_is_no_file_name(uid: str, tmp_path: Path) -> None:
    files = PacsFiles(tmp_path / "pacs", file_bytes=1 << 20, total_bytes=1 << 20)
    assert not is_uid(uid)
    with files.locked(), pytest.raises(FileRefused):
        files.put(STUDY, uid, [file_of("1.2")])
    with files.locked(), pytest.raises(FileRefused):
        files.put(uid, "1.2", [file_of("1.2")])
    assert not list(tmp_path.rglob("*evil*"))


def test_evil_names_in_a_listing_are_passed_over(tmp_path: Path) -> None:
    with web_server(serving(body(listing(*EVIL, "1.2")), lambda name: parts(file_of(name)))) as (url, asked):
        counts = run(web(url), tmp_path / "pacs")
    assert stored(tmp_path) == [f"pacs/{STUDY}/1.2.dcm"]
    assert counts.images == counts.images_new == 1
    assert not [path for path in asked if "evil" in path or ".." in path]


def test_an_evil_series_is_never_asked_for(tmp_path: Path) -> None:
    with web_server(serving(body(listing("1.2", series="../..")), lambda name: parts(file_of(name)))) as (url, asked):
        counts = run(web(url), tmp_path)
    assert counts.studies_missing == 1
    assert not [path for path in asked if "/series/" in path]


def test_an_endless_file_is_cut_off_and_the_next_one_taken(tmp_path: Path) -> None:
    flood = endless(PART_START + file_of("1.1"), b"\0" * 65536, MULTIPART)
    with web_server(
        serving(body(listing("1.1", "1.2")), lambda name: flood if name == "1.1" else parts(file_of(name)))
    ) as (url, _):
        counts = run(web(url), tmp_path)
    assert (counts.images_new, counts.images_missing) == (1, 1)
    assert stored(tmp_path) == [f"{STUDY}/1.2.dcm"]
    assert not list(tmp_path.rglob("*.part"))


def test_a_file_that_drips_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is what was asked for, and would be taken if it were waited for."""
    monkeypatch.setattr(retrieval, "_GRACE_TIMEOUTS", 0.2)
    with web_server(serving(body(listing("1.1")), lambda _: dripping(file_of("1.1"), delay_s=0.02))) as (url, _):
        counts = run(web(url), tmp_path)
    assert (counts.images_new, counts.images_missing) == (0, 1)


@pytest.mark.parametrize("status", [401, 404])
def test_a_refusal_that_waiting_does_not_change_is_asked_for_once(status: int, tmp_path: Path) -> None:
    with web_server(lambda _: body(b"", status=status)) as (url, asked), pytest.raises(PacsFault):
        run(web(url), tmp_path)
    assert len(asked) == 1


@pytest.mark.parametrize(
    "file",
    [
        parts(file_of("9.9")),  # another instance
        parts(file_of("1.1"), file_of("1.1")),  # two
        parts(b"<html>" * 99),
        parts(b"\0" * 128 + b"DICM"),
        body(file_of("1.1"), "text/html"),
        body(b"", 'multipart/related; boundary="b"'),
        body(b"--b\r\n" + b"x" * 400_000, MULTIPART),  # headers without end
        body(b"", status=500),
        body(b"", status=404),
    ],
)
def test_what_is_not_the_file_asked_for_is_not_kept(file: Answer, tmp_path: Path) -> None:
    with web_server(serving(body(listing("1.1", "1.2")), lambda n: file if n == "1.1" else parts(file_of(n)))) as (
        url,
        _,
    ):
        counts = run(web(url), tmp_path)
    assert stored(tmp_path) == [f"{STUDY}/1.2.dcm"]
    assert (counts.images_new, counts.images_missing) == (1, 1)


@pytest.mark.parametrize(
    "images",
    [
        body(b"<html>sign in</html>", "text/html"),
        body(b"[" * 200_000),
        body(b'{"a": 1}'),
        body(b"[1, null, [], {}, " + b'{"00080018": 7}, {"00080018": {"Value": []}}]'),
        body(b"\xff\xfe["),
        endless(b"[", b" " * (1 << 20), "application/json"),
    ],
)
def test_a_listing_that_is_none_fails_the_study_and_no_more(images: Answer, tmp_path: Path) -> None:
    with web_server(serving(images, lambda name: parts(file_of(name)))) as (url, _):
        counts = run(web(url, timeout_s=20.0), tmp_path)
    assert counts.studies_failed + counts.studies_missing == 1
    assert stored(tmp_path) == []


def test_a_listing_without_end_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicomweb, "_MAX_LISTED", 3000)
    numbers = itertools.count()

    def answer(path: str) -> Answer:
        more = listing(*(f"1.{next(numbers)}" for _ in range(1000)))
        return body(b"[]" if path.startswith("/pacs/studies?") else more)

    with web_server(answer) as (url, asked):
        counts = run(web(url), tmp_path)
    assert counts.studies_failed == 1
    assert len(asked) < 40


def test_all_files_together_have_a_limit(tmp_path: Path) -> None:
    instances = [f"1.{i}" for i in range(20)]
    one = len(file_of("1.1"))
    with (
        web_server(serving(body(listing(*instances)), lambda name: parts(file_of(name)))) as (url, _),
        pytest.raises(PacsFault) as raised,
    ):
        run(web(url), tmp_path, total_bytes=5 * one + one // 2)
    assert raised.value.fault is Fault.TOTAL_LIMIT
    assert len(stored(tmp_path)) == 5


def test_credentials_are_not_carried_to_another_address(tmp_path: Path) -> None:
    with web_server(lambda _: body(b"[]")) as (elsewhere, asked_there):
        away = body(b"", status=302, Location=f"{elsewhere}/studies")
        with web_server(lambda _: away) as (url, _), pytest.raises(PacsFault) as raised:
            run(web(url), tmp_path)
    assert raised.value.fault is Fault.REDIRECT
    assert asked_there == []


def test_the_whole_way_says_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    with web_server(lambda _: body(b"secret patient", status=403)) as (url, _):
        spec = PacsSpec(protocol="dicomweb", url=url, timeout_s=5.0)
        with pytest.raises(SiteError) as raised:
            fetch_studies(spec, [STUDY], tmp_path / "pacs", silent)
    assert "may not do this (HTTP 403)" in str(raised.value)
    assert "secret" not in str(raised.value)


FIND, GET = "1.2.840.10008.5.1.4.1.2.2.1", "1.2.840.10008.5.1.4.1.2.2.3"


@contextlib.contextmanager
def dimse_server(instances: list[str], send: Callable[[list[str]], Iterator[Dataset]]) -> Iterator[int]:
    """A PACS that lists `instances` and sends what `send` makes of a request."""

    def find(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        level = event.identifier.QueryRetrieveLevel
        asked = event.identifier.get("StudyInstanceUID")
        rows = {"STUDY": [], "SERIES": [SERIES], "IMAGE": instances}[level] if asked == STUDY else []
        for name in rows:
            row = Dataset()
            row.SeriesInstanceUID = SERIES
            row.Modality = "CR"
            if level == "IMAGE":
                row.SOPInstanceUID, row.SOPClassUID = name, SOP_CLASS["CR"]
            yield 0xFF00, row

    def get(event: evt.Event) -> Iterator[Any]:
        wanted = event.identifier.SOPInstanceUID
        names = [wanted] if isinstance(wanted, str) else list(wanted)
        yield 500
        for dataset in send(names):
            yield 0xFF00, dataset

    entity = AE(ae_title="PACS")
    entity.add_supported_context(FIND)
    entity.add_supported_context(GET)
    entity.add_supported_context(SOP_CLASS["CR"], scu_role=True, scp_role=True)
    server = entity.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_FIND, find), (evt.EVT_C_GET, get)]
    )
    try:
        yield server.socket.getsockname()[1]
    finally:
        server.shutdown()


def dataset_of(instance: str, side: int = 20) -> Dataset:
    """A data set to send."""
    return pydicom.dcmread(io.BytesIO(file_of(instance, side)))


def get_from(port: int, **changes: Any) -> Dimse:
    """A client of it."""
    values = {"host": "127.0.0.1", "port": port, "called_aet": "PACS", "timeout_s": 5.0, "max_file_mib": 1}
    return Dimse(PacsSpec(protocol="dimse", **(values | changes)))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_evil_names_in_a_find_are_passed_over(tmp_path: Path) -> None:
    evil = [name for name in EVIL if name and name.isascii() and name.isprintable()]
    with dimse_server([*evil, "1.2"], lambda names: map(dataset_of, names)) as port:
        counts = run(get_from(port), tmp_path / "pacs")
    assert stored(tmp_path) == [f"pacs/{STUDY}/1.2.dcm"]
    assert counts.images == counts.images_new == 1


def test_images_that_were_not_asked_for_are_turned_away(tmp_path: Path) -> None:
    with dimse_server(["1.1", "1.2"], lambda _: map(dataset_of, ["9.9", "1.2"])) as port:
        counts = run(get_from(port), tmp_path)
    assert stored(tmp_path) == [f"{STUDY}/1.2.dcm"]
    assert (counts.images_new, counts.images_missing) == (1, 1)


def test_a_flood_of_other_images_is_cut_off(tmp_path: Path) -> None:
    sent: list[str] = []

    def flood(_: list[str]) -> Iterator[Dataset]:
        for _ in range(450):
            sent.append("one")
            yield dataset_of(generate_uid())

    with dimse_server(["1.1"], flood) as port:
        counts = run(get_from(port), tmp_path)
    assert (stored(tmp_path), counts.images_missing) == ([], 1)
    assert len(sent) < 4 * 120


def test_a_data_set_beyond_the_limit_is_cut_off_and_the_others_taken(tmp_path: Path) -> None:
    sides = {"1.1": 20, "1.2": 1200, "1.3": 20}
    with dimse_server(list(sides), lambda names: (dataset_of(name, sides[name]) for name in names)) as port:
        counts = run(get_from(port), tmp_path)
    assert stored(tmp_path) == [f"{STUDY}/1.1.dcm", f"{STUDY}/1.3.dcm"]
    assert (counts.images_new, counts.images_missing) == (2, 1)


@pytest.mark.parametrize("header", [b"\x02\0\xff\xff\xff\xff", b"\x04\0\xff\xff\xff\xff", b"HTTP/1.1 400"])
def test_a_message_of_four_gigabytes_is_not_read(header: bytes, tmp_path: Path) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    sent = [0]

    def flood() -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = listener.accept()
                with contextlib.suppress(OSError), peer:
                    peer.sendall(header)
                    for _ in range(2000):
                        sent[0] += peer.send(b"\0" * (1 << 16))

    threading.Thread(target=flood, daemon=True).start()
    with pytest.raises(PacsFault) as raised:
        run(get_from(listener.getsockname()[1], timeout_s=1.0), tmp_path)
    listener.close()
    assert raised.value.fault in (Fault.LOST, Fault.TIMEOUT, Fault.REJECTED)
    assert sent[0] < 64 << 20
