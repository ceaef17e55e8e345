"""[pacs] in site.toml: which archive the images come from, how it is spoken to, and how much may be fetched."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from ghostnet.errors import SiteError
from ghostnet.plan.keys import Number, key, keys_of

_AE_TITLE = re.compile(r"[!-\[\]-~](?:[ -\[\]-~]{0,14}[!-\[\]-~])?")  # PS3.5 section 6.2, VR AE: no backslash
_DATES = re.compile(r"[0-9]{8}|[0-9]{8}-(?:[0-9]{8})?|-[0-9]{8}")  # PS3.4 section C.2.2.2.5: range matching
_MODALITY = re.compile(r"[A-Z0-9_ ]{2,16}")
_MAX_CREDENTIALS = 1 << 14  # bytes; signed tokens run to a few thousand


@dataclass(frozen=True, kw_only=True)
class PacsSpec:
    """The settings of fetching images. Keys of the other protocol are errors."""

    protocol: Annotated[
        Literal["dicomweb", "dimse"],
        key('Protocol: "dicomweb" (QIDO-RS and WADO-RS) or "dimse" (C-FIND and C-GET or C-MOVE).', example="dicomweb"),
    ]
    url: Annotated[
        str, key("Root of the DICOMweb service.", kinds=("dicomweb",), example="https://pacs.example/dicom-web")
    ] = ""
    credentials: Annotated[
        Path | None,
        key(
            "File, readable by the site's user alone (0600), of one line: user:password or a bearer token.",
            kinds=("dicomweb",),
            example="pacs.credentials",
        ),
    ] = None
    host: Annotated[str, key("The archive's host name or address.", kinds=("dimse",), example="pacs.example")] = ""
    port: Annotated[int, key("The archive's port.", ge=1, le=65535, kinds=("dimse",))] = 104
    called_aet: Annotated[str, key("The archive's application entity title.", kinds=("dimse",), example="PACS")] = ""
    calling_aet: Annotated[str, key("Our application entity title, as the archive knows it.", kinds=("dimse",))] = (
        "GHOSTNET"
    )
    retrieve: Annotated[
        Literal["get", "move"],
        key(
            '"get" is C-GET, on our own connection; "move" is C-MOVE: the archive connects back to '
            "move_address:move_port.",
            kinds=("dimse",),
        ),
    ] = "get"
    move_address: Annotated[
        str,
        key(
            'With retrieve = "move": IP address of this machine to listen on, only while fetching.',
            kinds=("dimse",),
            example="192.0.2.10",
        ),
    ] = ""
    move_port: Annotated[int, key('With retrieve = "move": the port.', ge=1, le=65535, kinds=("dimse",))] = 11112
    tls: Annotated[bool, key("TLS; the archive's certificate is then verified.", kinds=("dimse",))] = False
    ca_file: Annotated[
        Path | None,
        key("PEM file of the certificates to trust, instead of the public ones.", example="hospital-ca.pem"),
    ] = None
    client_certificate: Annotated[
        Path | None,
        key("PEM file (0600) with our certificate and its key, where the archive asks for one.", example="client.pem"),
    ] = None
    modalities: Annotated[
        tuple[str, ...],
        key("Modalities that are fetched; left out: every one that is taken in.", example=["CR", "DX"]),
    ] = ()
    study_date: Annotated[
        str,
        key(
            "Without a label table: studies of these days, YYYYMMDD-YYYYMMDD; either end may be left out.",
            example="20200101-20201231",
        ),
    ] = ""
    timeout_s: Annotated[
        Number,
        key("Time without a byte or an answer after which a request is given up.", gt=0, le=3600, unit="seconds"),
    ] = 30.0
    patience_s: Annotated[
        Number,
        key("Longest wait for an archive that is down, without any image arriving.", ge=0, le=86400, unit="seconds"),
    ] = 300.0
    max_file_mib: Annotated[
        int, key("Largest file that is kept; larger ones are left out.", ge=1, le=65536, unit="MiB")
    ] = 1024
    max_total_gib: Annotated[
        Number, key("Most disk space of all fetched files together.", gt=0, le=1 << 20, unit="GiB")
    ] = 200.0

    @property
    def file_bytes(self) -> int:
        """The most that one file may have."""
        return self.max_file_mib << 20

    @property
    def total_bytes(self) -> int:
        """The most that all files together may have."""
        return int(self.max_total_gib * (1 << 30))

    def beside(self, folder: Path) -> PacsSpec:
        """The same with its paths taken from `folder`."""
        names = ("credentials", "ca_file", "client_certificate")
        paths = {name: getattr(self, name) for name in names}
        absolute = {name: (folder / path).resolve() for name, path in paths.items() if path is not None}
        return dataclasses.replace(self, **absolute)


def check_pacs(spec: PacsSpec, source: str) -> None:
    """Refuses what cannot be spoken to, or only without protection.

    Raises:
        SiteError: naming the key.
    """
    for other in keys_of(PacsSpec):
        if other.kinds and spec.protocol not in other.kinds and getattr(spec, other.name) != other.default:
            raise SiteError(f"[pacs].{other.name} is not for protocol = {spec.protocol!r}; remove it from {source}")
    _check_dicomweb(spec, source) if spec.protocol == "dicomweb" else _check_dimse(spec, source)
    if spec.study_date and not _DATES.fullmatch(spec.study_date):
        raise SiteError(f'[pacs].study_date = {spec.study_date!r} is not like "20200101-20201231"; set it in {source}')
    for modality in spec.modalities:
        if not _MODALITY.fullmatch(modality):
            raise SiteError(f'[pacs].modalities holds {modality!r}, not a code like "CR"; change it in {source}')


def _check_dicomweb(spec: PacsSpec, source: str) -> None:
    expected = f'expected one like "https://pacs.example/dicom-web"; set it in {source}'
    try:
        parts = urlsplit(spec.url)
        _ = parts.port
    except ValueError:
        raise SiteError(f"[pacs].url is no address; {expected}") from None
    if "@" in (parts.netloc or spec.url):
        raise SiteError(f"[pacs].url holds a user name; put user:password into the file [pacs].credentials of {source}")
    spaced = not spec.url.isprintable() or " " in spec.url
    if spaced or parts.scheme not in ("https", "http") or not parts.hostname or parts.query or parts.fragment:
        raise SiteError(f"[pacs].url = {spec.url!r} is no address; {expected}")
    if "[" in parts.netloc:
        raise SiteError(f"[pacs].url = {spec.url!r} has an IPv6 address; give its host name in {source}")
    if parts.scheme == "http" and (spec.credentials or spec.client_certificate) and not _is_loopback(parts.hostname):
        raise SiteError(f"[pacs].url = {spec.url!r} would send credentials unencrypted; use https in {source}")


def _check_dimse(spec: PacsSpec, source: str) -> None:
    if not spec.host:
        raise SiteError(f"[pacs].host is missing; name the PACS's machine in {source}")
    if not spec.host.isprintable() or " " in spec.host:
        raise SiteError(f"[pacs].host = {spec.host!r} is no name of a machine; change it in {source}")
    for name in ("called_aet", "calling_aet"):
        if not _AE_TITLE.fullmatch(getattr(spec, name)):
            raise SiteError(f"[pacs].{name} = {getattr(spec, name)!r} is not 1 to 16 characters; set it in {source}")
    if not spec.tls and (spec.ca_file or spec.client_certificate):
        raise SiteError(f"[pacs].ca_file and client_certificate are for TLS; set tls = true in {source}")
    if spec.retrieve == "get":
        return
    try:
        ipaddress.ip_address(spec.move_address)
    except ValueError:
        raise SiteError(
            f"[pacs].move_address = {spec.move_address!r} is no IP address; give the one of this machine that the "
            f"PACS sends to, in {source}"
        ) from None
    if spec.tls and not (spec.ca_file and spec.client_certificate):
        raise SiteError(f'[pacs] with tls and retrieve = "move" needs ca_file and client_certificate in {source}')


def read_credentials(spec: PacsSpec) -> str:
    """The one line of the credentials file; "" where none is named. Refuses files that others may read.

    Raises:
        SiteError: a named file is missing, readable by others, empty, too long, or a key that needs a passphrase.
    """
    if spec.ca_file is not None and b"BEGIN CERTIFICATE" not in _read(spec.ca_file, "ca_file"):
        raise SiteError(f"[pacs].ca_file = {spec.ca_file} holds no certificate; give a PEM file")
    if spec.client_certificate is not None:
        pem = _read(spec.client_certificate, "client_certificate", secret=True)
        if b"BEGIN CERTIFICATE" not in pem or b"PRIVATE KEY" not in pem or b"ENCRYPTED" in pem:
            raise SiteError(
                f"[pacs].client_certificate = {spec.client_certificate} must hold a certificate and its key without "
                "passphrase, both PEM"
            )
    if spec.credentials is None:
        return ""
    lines = _read(spec.credentials, "credentials", secret=True).decode("utf-8", "replace").strip().splitlines()
    if len(lines) != 1 or "\ufffd" in lines[0] or not lines[0].isprintable():
        raise SiteError(f"[pacs].credentials = {spec.credentials} is not one line of text: user:password, or a token")
    return lines[0].strip()


def _read(path: Path, key: str, *, secret: bool = False) -> bytes:
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise SiteError(f"[pacs].{key} = {path} is not a file")
            if secret and status.st_mode & 0o077:
                raise SiteError(f"[pacs].{key} = {path} may be read by others; run: chmod 600 {path}")
            return file.read(_MAX_CREDENTIALS if secret else 1 << 24)
    except OSError as error:
        kind = error.__class__.__name__
        raise SiteError(f"[pacs].{key} = {path} cannot be read ({kind}); create it for the site's user alone") from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
