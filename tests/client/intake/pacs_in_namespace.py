"""Runs inside a network namespace: real Orthancs, what comes of fetching from them, as JSON on stdout.

Usage: python pacs_in_namespace.py FOLDER
"""

from __future__ import annotations

import datetime
import io
import ipaddress
import json
import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pydicom
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydicom.uid import RLELossless, generate_uid

from client.intake.pacs.fetch import fetch_studies
from client.pacs_config import PacsSpec
from ghostnet.errors import GhostNetError
from ghostnet.progress import silent
from tests.client.intake.dicom_files import dicom, picture
from tests.orthanc import AE_TITLE, DICOM_PORT, HTTP_PORT, MOVE_PORT, Orthanc, TlsFront

STUDIES, IMAGES = 4, 50
PASSWORD = "correct horse: battery stäple"

Files = dict[str, dict[str, pydicom.Dataset]]


def main(folder: Path) -> None:
    """Every scene's facts, by name."""
    facts: dict[str, Any] = {}
    started = time.monotonic()
    with Orthanc(folder / "plain") as server:
        files = fill(server)
        facts["dicomweb"] = whole(dicomweb(), files, folder / "dicomweb")
        facts["get"] = whole(dimse(), files, folder / "get")
        facts["move"] = some(
            dimse(retrieve="move", move_address="127.0.0.1", move_port=MOVE_PORT), files, folder / "move"
        )
        facts["single"] = single(dicomweb(), files, folder / "single")
        facts["single by DIMSE"] = single(dimse(), files, folder / "single-dimse")
        fill(server, images=3, years=("2010", "2011"))
        for name, spec in {"dicomweb": dicomweb, "dimse": dimse}.items():
            facts[f"by date, {name}"] = by_date(spec, folder / f"date-{name}")
        facts["missing"] = outcome(dicomweb(), ["1.2.3", "1.2.4"], folder / "missing")
        facts["unknown AE"] = outcome(dimse(called_aet="NOBODY"), list(files), folder / "unknown")
        stranger = dimse(calling_aet="STRANGER", retrieve="move", move_address="127.0.0.1", move_port=MOVE_PORT)
        facts["unknown destination"] = outcome(stranger, list(files), folder / "stranger")
        facts["wrong path"] = outcome(dicomweb(url=f"http://127.0.0.1:{HTTP_PORT}/dicom"), list(files), folder / "path")
        half = dict(list(files.items())[:2])
        facts["restart, dicomweb"] = restarted(server, dicomweb(), half, folder / "restart-dicomweb")
        facts["restart, get"] = restarted(server, dimse(), half, folder / "restart-get")
        facts["cut off"] = cut_off(server, dicomweb(patience_s=0.5), half, folder / "cut-off")
    facts["unreachable"] = outcome(dicomweb(patience_s=0.5), list(files), folder / "unreachable")
    facts["unreachable by DIMSE"] = outcome(dimse(patience_s=0.5), list(files), folder / "unreachable")
    facts |= protected(folder / "protected")
    facts["seconds"] = time.monotonic() - started
    json.dump(facts, sys.stdout)


def dicomweb(**changes: Any) -> PacsSpec:
    """The plain server by DICOMweb."""
    values = {"url": f"http://127.0.0.1:{HTTP_PORT}/dicom-web", "timeout_s": 20.0, "patience_s": 30.0}
    return PacsSpec(protocol="dicomweb", **(values | changes))


def dimse(**changes: Any) -> PacsSpec:
    """The plain server by DIMSE."""
    values = {"host": "127.0.0.1", "port": DICOM_PORT, "called_aet": AE_TITLE, "timeout_s": 20.0, "patience_s": 30.0}
    return PacsSpec(protocol="dimse", **(values | changes))


def fill(
    server: Orthanc, studies: int = STUDIES, images: int = IMAGES, years: tuple[str, str] = ("2020", "2021")
) -> Files:
    """Stores studies of CR images, one in ten compressed; the last study is of MR and of another year."""
    files: Files = {}
    for number in range(studies):
        last = number == studies - 1
        study, series = generate_uid(), generate_uid()
        for place in range(images):
            dataset = dicom(
                picture(number * images + place, (100, 100)),
                modality="MR" if last else "CR",
                StudyInstanceUID=study,
                SeriesInstanceUID=series,
                StudyDate=f"{years[last]}0304",
                PatientID=f"P{number}",
            )
            if place % 10 == 0:
                dataset.compress(RLELossless)
            file = io.BytesIO()
            pydicom.dcmwrite(file, dataset, enforce_file_format=True)
            server.store(file.getvalue())
            files.setdefault(str(study), {})[str(dataset.SOPInstanceUID)] = dataset
    return files


def whole(spec: PacsSpec, files: Files, folder: Path) -> dict[str, Any]:
    """All studies, and all of them again."""
    start = time.monotonic()
    fetched = fetch_studies(spec, list(files), folder, silent)
    seconds = time.monotonic() - start
    written = {path: path.stat().st_mtime_ns for path in folder.glob("*/*.dcm")}
    marker = next(folder.glob("*/.complete"))
    marker.unlink()  # so that the PACS is asked once more
    again = fetch_studies(spec, list(files), folder, silent)
    return {
        "new": fetched.images_new,
        "again": again.images_new,
        "rewritten": sum(path.stat().st_mtime_ns != when for path, when in written.items()),
        "a second": fetched.images_new / seconds,
        "asked again": again.images,
        "modes": sorted({oct(stat.S_IMODE(path.stat().st_mode)) for path in folder.rglob("*")}),
        "root mode": oct(stat.S_IMODE(folder.stat().st_mode)),
    } | compared(folder, files)


def some(spec: PacsSpec, files: Files, folder: Path) -> dict[str, Any]:
    """The first study."""
    first = dict(list(files.items())[:1])
    return {"new": fetch_studies(spec, list(first), folder, silent).images_new} | compared(folder, first)


def single(spec: PacsSpec, files: Files, folder: Path) -> dict[str, Any]:
    """Three images of one study, one of them unknown to the PACS; and the same once more."""
    study, images = next(iter(files.items()))
    names = list(images)[:2]
    wanted = [f"{study}/{name}" for name in (*names, "1.2.3")]
    fetched = fetch_studies(spec, wanted, folder, silent)
    again = fetch_studies(spec, wanted, folder, silent)
    only = {study: {name: images[name] for name in names}}
    return {"new": fetched.images_new, "not sent": fetched.images_missing, "again": again.images_new} | compared(
        folder, only
    )


def by_date(spec: Callable[..., PacsSpec], folder: Path) -> dict[str, Any]:
    """Which studies a range of dates, or a modality, selects."""
    counts = {}
    for name, keys in {
        "2010": {"study_date": "20100101-20101231"},
        "until 2011": {"study_date": "-20111231"},
        "MR": {"study_date": "20100101-20111231", "modalities": ("MR",)},
        "CR or MR": {"study_date": "20100101-20111231", "modalities": ("CR", "MR")},
    }.items():
        counts[name] = fetch_studies(spec(**keys), None, folder / name.replace(" ", "-"), silent).images_new
    return counts


def restarted(server: Orthanc, spec: PacsSpec, files: Files, folder: Path) -> dict[str, Any]:
    """The server is killed in the middle and started again a second later."""
    phases: set[str] = set()
    killed: list[threading.Thread] = []

    def again() -> None:
        time.sleep(1)
        server.start()

    def tell(phase: str, done: int, total: int) -> None:
        phases.add(phase)
        if phase.startswith("images") and done == 40 and not killed:
            server.kill()
            killed.append(threading.Thread(target=again))
            killed[0].start()

    fetched = fetch_studies(spec, list(files), folder, tell)
    for thread in killed:
        thread.join()
    waited = any("waiting" in phase for phase in phases)
    return {"new": fetched.images_new, "killed": len(killed), "waited": waited} | compared(folder, files)


def cut_off(server: Orthanc, spec: PacsSpec, files: Files, folder: Path) -> dict[str, Any]:
    """The server is killed, the fetch gives up; later another one goes on."""
    done_before: list[int] = []

    def tell(phase: str, done: int, total: int) -> None:
        if phase.startswith("images"):
            done_before[:] = [done]
            if done == 40:
                server.kill()

    facts = outcome(spec, list(files), folder, tell)
    halves = len(list(folder.rglob("*.part")))
    server.start()
    fetched = fetch_studies(spec, list(files), folder, silent)
    return facts | {"before": done_before[0], "after": fetched.images_new, "halves": halves} | compared(folder, files)


def protected(folder: Path) -> dict[str, Any]:
    """A server with a password and its own certificate, for both protocols."""
    folder.mkdir(parents=True)
    both, key, certificate = make_certificate(folder)
    user, wrong = folder / "user", folder / "wrong"
    for path, text in ((user, f"anna:{PASSWORD}\n"), (wrong, "anna:guess\n")):
        path.write_text(text)
        path.chmod(0o600)
    settings = {
        "AuthenticationEnabled": True,
        "RegisteredUsers": {"anna": PASSWORD},
        "DicomTlsEnabled": True,
        "DicomTlsCertificate": str(certificate),
        "DicomTlsPrivateKey": str(key),
        "DicomTlsTrustedCertificates": str(certificate),
        "DicomTlsRemoteCertificateRequired": False,
    }
    with Orthanc(folder / "server", **settings), TlsFront(both) as front:
        url = f"https://127.0.0.1:{front.port}/dicom-web"
        web: dict[str, Any] = {"url": url, "ca_file": certificate}
        tls: dict[str, Any] = {"tls": True, "ca_file": certificate}
        scenes = {
            "right password": dicomweb(**web, credentials=user),
            "wrong password": dicomweb(**web, credentials=wrong),
            "no password": dicomweb(**web),
            "untrusted": dicomweb(url=url, credentials=user),
            "other name": dicomweb(url=url.replace("127.0.0.1", "localhost"), credentials=user, ca_file=certificate),
            "http": dicomweb(url=url.replace("https", "http"), patience_s=0.5, credentials=user),
            "DIMSE over TLS": dimse(**tls),
            "DIMSE untrusted": dimse(tls=True),
            "DIMSE without TLS": dimse(timeout_s=2.0, patience_s=0.5),
        }
        return {name: outcome(spec, ["1.2.3"], folder / "got") for name, spec in scenes.items()}


def outcome(spec: PacsSpec, wanted: Sequence[str], folder: Path, tell: Any = silent) -> dict[str, Any]:
    """The error that a person sees, if any, and whether it names a UID."""
    try:
        fetched = fetch_studies(spec, wanted, folder, tell)
    except GhostNetError as error:
        text = str(error)
        names = any(uid in text for uid in wanted)
        kind = error.__class__.__name__
        return {"error": kind, "text": text, "names a UID": names}
    return {"error": "", "text": "", "new": fetched.images_new}


def compared(folder: Path, files: Files) -> dict[str, Any]:
    """How the files on disk differ from those in the PACS."""
    there = {(path.parent.name, path.stem): path for path in folder.glob("*/*.dcm")}
    wanted = {(study, name): dataset for study, images in files.items() for name, dataset in images.items()}
    different = 0
    for name in there.keys() & wanted.keys():
        got = pydicom.dcmread(there[name])
        same = got.PixelData == wanted[name].PixelData and got.SOPInstanceUID == wanted[name].SOPInstanceUID
        syntax = got.file_meta.TransferSyntaxUID == wanted[name].file_meta.TransferSyntaxUID
        different += not (same and syntax and got.PatientID == wanted[name].PatientID)
    return {
        "absent": len(wanted.keys() - there.keys()),
        "extra": len(there.keys() - wanted.keys()),
        "different": different,
    }


def make_certificate(folder: Path) -> tuple[Path, Path, Path]:
    """A self-signed certificate for 127.0.0.1: certificate with key, key, certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "pacs")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    public = signed.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    paths = folder / "both.pem", folder / "key.pem", folder / "certificate.pem"
    for path, text in zip(paths, (public + private, private, public), strict=True):
        path.write_bytes(text)
        os.chmod(path, 0o600)
    return paths


if __name__ == "__main__":
    main(Path(sys.argv[1]))
