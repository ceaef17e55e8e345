"""What a process that parses hostile bytes gives up; a file whose decoder is missing is not taken for broken."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from pydicom.data import get_testdata_file

from client.intake.readers.codestreams import stated_precision
from client.intake.readers.dicom import read_dicom
from client.intake.sandbox.confinement import workers_have_no_network
from client.intake.sandbox.pool import _Worker, read_patients
from client.intake.task import Limits
from client.quarantine import TRANSIENT, Code, Refused
from tests.client.intake.dicom_files import dicom, picture, save

ROOT = Path(__file__).resolve().parents[3]


def test_a_confined_process_reaches_no_server_and_gains_no_privilege() -> None:
    if not workers_have_no_network():
        pytest.skip("this kernel lets no process give up the network")
    code = (
        "import socket, sys\n"
        "from client.intake.sandbox.confinement import confine\n"
        "confine() if sys.argv[2] == 'confined' else None\n"
        "print([line.split()[1] for line in open('/proc/self/status') if line.startswith('NoNewPrivs')])\n"
        "print(socket.socket().connect_ex(('127.0.0.1', int(sys.argv[1]))))\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        said = [
            subprocess.run(
                [sys.executable, "-c", code, port, how], cwd=ROOT, capture_output=True, text=True, check=True
            ).stdout.splitlines()
            for how in ("confined", "free")
        ]
    assert said[0][0] == "['1']"
    assert said[0][1] != "0"
    assert said[1][1] == "0"


def test_a_worker_is_in_a_network_of_its_own(tmp_path: Path) -> None:
    if not workers_have_no_network():
        pytest.skip("this kernel lets no process give up the network")
    worker = _Worker(None, Limits())
    try:
        worker.patient(save(dicom(picture()), tmp_path / "a.dcm"))
        assert worker._process is not None
        network = Path(f"/proc/{worker._process.pid}/ns/net")
        assert network.readlink() != Path("/proc/self/ns/net").readlink()
    finally:
        worker.stop()


def test_a_patient_is_read_of_any_file_with_a_header(tmp_path: Path) -> None:
    good = save(dicom(picture(), patient=" ANNA "), tmp_path / "a.dcm")
    bad = tmp_path / "b.dcm"
    bad.write_bytes(b"nothing")
    nobody = save(dicom(picture(), patient=None), tmp_path / "c.dcm")
    found = read_patients([good, bad, nobody, tmp_path / "absent"], limits=Limits())
    assert [patient.strip() for patient in found] == ["ANNA", "", "", ""]


@pytest.mark.parametrize(("precision", "marker"), [(8, 0xC0), (12, 0xC1)])
def test_the_precision_of_a_stream_is_read_behind_other_segments(precision: int, marker: int) -> None:
    comment = b"\xff\xfe\x00\x06abcd"
    frame = bytes([0xFF, marker, 0, 11, precision, 0, 16, 0, 16, 1])
    assert stated_precision(b"\xff\xd8" + comment + frame, "JPEG extended") == precision
    assert stated_precision(b"\xff\xd8" + comment, "JPEG extended") is None


def test_a_jpeg_of_12_bits_is_decoded_or_lacks_its_decoder_and_is_not_called_broken() -> None:
    path = get_testdata_file("JPGExtended.dcm", download=False)
    if path is None:
        pytest.skip("pydicom-data is not installed: no JPEG of 12 bits")
    read = {"file_bytes": 1 << 24, "pixels": 1 << 24}
    if importlib.util.find_spec("libjpeg"):
        assert read_dicom(Path(path), **read).frames[0].pixels.max() == 264
        return
    with pytest.raises(Refused) as caught:
        read_dicom(Path(path), **read)
    assert caught.value.code is Code.NO_DECODER
    assert Code.NO_DECODER in TRANSIENT
