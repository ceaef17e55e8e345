"""[pacs] in site.toml: which archive the images come from, how it is spoken to, and how much may be fetched."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import re
import stat
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from ghostnet.errors import SiteError
from ghostnet.plan.toml import check_number

_AE_TITLE = re.compile(r"[!-\[\]-~](?:[ -\[\]-~]{0,14}[!-\[\]-~])?")  # PS3.5 section 6.2, VR AE: no backslash
_DATES = re.compile(r"\d{8}|\d{8}-(?:\d{8})?|-\d{8}")  # PS3.4 section C.2.2.2.5: range matching
_MODALITY = re.compile(r"[A-Z0-9_ ]{2,16}")
_MOST_CREDENTIALS = 1 << 14  # bytes; signed tokens run to a few thousand
_FOR_DICOMWEB = ("url", "credentials")
_FOR_DIMSE = ("host", "port", "called_aet", "calling_aet", "retrieve", "move_address", "move_port", "tls")


@dataclass(frozen=True, kw_only=True)
class PacsSpec:
    """How the images are fetched. Keys of the other protocol are errors."""

    protocol: Literal["dicomweb", "dimse"]
    url: str = ""  # dicomweb: the service's root, "https://pacs.example/dicom-web"
    credentials: Path | None = None  # dicomweb: file, mode 0600, of one line: user:password or a bearer token
    host: str = ""  # dimse
    port: int = 104  # dimse
    called_aet: str = ""  # dimse: the PACS's application entity title
    calling_aet: str = "GHOSTNET"  # dimse: ours, as the PACS knows it
    retrieve: Literal["get", "move"] = "get"  # dimse: C-GET, or C-MOVE to calling_aet at move_address:move_port
    move_address: str = ""  # dimse, move: IP address of this machine to listen on, only while fetching
    move_port: int = 11112  # dimse, move
    tls: bool = False  # dimse: the PACS's certificate is always verified
    ca_file: Path | None = None  # PEM; which certificates to trust instead of the public ones
    client_certificate: Path | None = None  # PEM with certificate and key, mode 0600; where the PACS asks for one
    modalities: tuple[str, ...] = ()  # fetched at all; none named: every kind of image that is taken in
    study_date: str = ""  # without a label table: "20200101-20201231", either end may be left out
    timeout_s: float = 30.0  # without a byte or an answer
    patience_s: float = 300.0  # how long to wait for a PACS that is down, without any image arriving
    max_file_mib: int = 1024  # larger files are left out
    max_total_gib: float = 200.0  # of all files on disk

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
    others = _FOR_DIMSE if spec.protocol == "dicomweb" else _FOR_DICOMWEB
    plain = PacsSpec(protocol=spec.protocol)
    for name in others:
        if getattr(spec, name) != getattr(plain, name):
            raise SiteError(f"[pacs].{name} is not for protocol = {spec.protocol!r}; remove it from {source}")
    _check_dicomweb(spec, source) if spec.protocol == "dicomweb" else _check_dimse(spec, source)
    if spec.study_date and not _DATES.fullmatch(spec.study_date):
        raise SiteError(f'[pacs].study_date = {spec.study_date!r} is not like "20200101-20201231"; set it in {source}')
    for modality in spec.modalities:
        if not _MODALITY.fullmatch(modality):
            raise SiteError(f'[pacs].modalities holds {modality!r}, not a code like "CR"; change it in {source}')
    check = partial(check_number, source=source, error=SiteError)
    check(spec.timeout_s, key="pacs.timeout_s", above=0, high=3600)
    check(spec.patience_s, key="pacs.patience_s", low=0, high=86400)
    check(spec.max_file_mib, key="pacs.max_file_mib", low=1, high=65536)
    check(spec.max_total_gib, key="pacs.max_total_gib", above=0, high=1 << 20)


def _check_dicomweb(spec: PacsSpec, source: str) -> None:
    expected = f'expected one like "https://pacs.example/dicom-web"; set it in {source}'
    try:
        parts = urlsplit(spec.url)
        _ = parts.port
    except ValueError:
        raise SiteError(f"[pacs].url is no address; {expected}") from None
    if "@" in parts.netloc:
        raise SiteError(f"[pacs].url holds a user name; put user:password into the file [pacs].credentials of {source}")
    if parts.scheme not in ("https", "http") or not parts.hostname or parts.query or parts.fragment:
        raise SiteError(f"[pacs].url = {spec.url!r} is no address; {expected}")
    if "[" in parts.netloc:
        raise SiteError(f"[pacs].url = {spec.url!r} has an IPv6 address; give its host name in {source}")
    if parts.scheme == "http" and (spec.credentials or spec.client_certificate) and not _is_loopback(parts.hostname):
        raise SiteError(f"[pacs].url = {spec.url!r} would send credentials unencrypted; use https in {source}")


def _check_dimse(spec: PacsSpec, source: str) -> None:
    if not spec.host:
        raise SiteError(f"[pacs].host is missing; name the PACS's machine in {source}")
    for name in ("called_aet", "calling_aet"):
        if not _AE_TITLE.fullmatch(getattr(spec, name)):
            raise SiteError(f"[pacs].{name} = {getattr(spec, name)!r} is not 1 to 16 characters; set it in {source}")
    for name in ("port", "move_port"):
        check_number(getattr(spec, name), key=f"pacs.{name}", low=1, high=65535, source=source, error=SiteError)
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
            return file.read(_MOST_CREDENTIALS if secret else 1 << 24)
    except OSError as error:
        kind = error.__class__.__name__
        raise SiteError(f"[pacs].{key} = {path} cannot be read ({kind}); create it for the site's user alone") from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
