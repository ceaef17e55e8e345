"""A PACS by DICOMweb (PS3.18): QIDO-RS to list, WADO-RS to fetch. Files are stored as they come, never parsed."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable, Iterator, Sequence
from email.message import Message
from typing import Any

import requests
from dicomweb_client.web import DICOMwebClient
from requests.auth import AuthBase, HTTPBasicAuth
from urllib3.exceptions import NewConnectionError

from client.intake.pacs.faults import Fault, PacsFault
from client.intake.pacs.retrieval import Inbox, Pace
from client.intake.pacs.store import Listed, is_uid
from client.pacs_config import PacsSpec

_STUDY, _SERIES, _INSTANCE, _CLASS, _MODALITY = "0020000D", "0020000E", "00080018", "00080016", "00080060"
_PAGE = 1000
_MAX_LISTED = 200_000  # images of a study, studies of a range of dates
_MAX_JSON = 64 << 20  # bytes of one page
_MAX_ENVELOPE_BYTES = 1 << 14  # bytes before and after the one part of an answer
_CHUNK = 1 << 18
_PART = 'multipart/related; type="application/dicom"'
# As stored; without the addition an archive has to decompress (PS3.18 section 8.7.3.5.2). Older ones refuse it.
_ACCEPTED = (f"{_PART}; transfer-syntax=*", _PART)
_REFUSES_SYNTAX = (400, 406)
_ABSENT = (400, 403, 404, 406, 409, 410, 500)  # said of one image: the others are asked for all the same
_OVERLOADED = (408, 429, 502, 503, 504)


class DicomWeb:
    """One DICOMweb service; see `retrieval.Archive`."""

    def __init__(self, spec: PacsSpec, credentials: str) -> None:
        self._timeout_s = spec.timeout_s
        self._accepted: tuple[str, ...] = _ACCEPTED
        self._url = spec.url.rstrip("/")
        self._session = _session(spec, credentials)
        self._client = DICOMwebClient(
            self._url, self._session, callback=self._watch, permissive_uid=True, timeout=spec.timeout_s
        )
        self._client.set_http_retry_params(retry=False)  # `Patience` says when to try again

    def verify_connection(self) -> None:
        with _faults():
            self._client.search_for_studies(limit=1, search_filters={"StudyInstanceUID": "1.2.3"})

    def studies(self, study_date: str, modalities: Sequence[str]) -> list[str]:
        found: dict[str, None] = {}
        for modality in modalities or ("",):
            filters = {"StudyDate": study_date} | ({"ModalitiesInStudy": modality} if modality else {})

            def page(limit: int, offset: int, filters: dict[str, str] = filters) -> Any:
                return self._client.search_for_studies(limit=limit, offset=offset, search_filters=filters)

            found |= dict.fromkeys(_rows(page, _STUDY))
        return list(found)

    def images(self, study: str, modalities: Sequence[str]) -> list[Listed]:
        filters = {"Modality": modalities[0]} if len(modalities) == 1 else None

        def page(limit: int, offset: int) -> Any:
            return self._client.search_for_instances(study, limit=limit, offset=offset, search_filters=filters)

        return [
            Listed(
                series=_value(row, _SERIES),
                instance=instance,
                sop_class=_value(row, _CLASS),
                modality=_value(row, _MODALITY),
            )
            for instance, row in _rows(page, _INSTANCE).items()
            if is_uid(_value(row, _SERIES))
        ]

    def retrieve(self, study: str, wanted: Sequence[Listed], inbox: Inbox) -> None:
        for image in wanted:
            url = f"{self._url}/studies/{study}/series/{image.series}/instances/{image.instance}"
            response = self._get(url)
            if response is not None:
                with response:
                    inbox.put(image.instance, _one_part(response))

    def close(self) -> None:
        self._session.close()

    def _get(self, url: str) -> requests.Response | None:
        """The answer, its body still to be read; None where the PACS does not give this one."""
        status = 0
        for place, accepted in enumerate(self._accepted):
            with _faults():
                response = self._session.get(url, headers={"Accept": accepted}, stream=True, timeout=self._timeout_s)
            status = response.status_code
            if status == 200:
                self._accepted = self._accepted[place:]
                return response
            response.close()
            if status not in _REFUSES_SYNTAX:
                break
        if status in _ABSENT:
            return None
        raise PacsFault(_of_status(status))

    def _watch(self, response: requests.Response, **arguments: Any) -> None:
        most = None if arguments.get("stream") else _MAX_JSON  # files have their own limit
        response.raw = _Watched(response.raw, most, Pace(self._timeout_s))


class _Watched:
    """The body of an answer, which may neither be endless nor drip for ever."""

    def __init__(self, raw: Any, most: int | None, pace: Pace) -> None:
        self._raw = raw
        self._left = most
        self._pace = pace

    def stream(self, size: int, decode_content: bool | None = None) -> Iterator[bytes]:
        # One piece as it comes: urllib3's own `stream` waits until `size` bytes are together, however slowly they drip.
        while chunk := self._raw.read1(size, decode_content=decode_content):
            self._pace.count(len(chunk))
            if self._left is not None:
                self._left -= len(chunk)
                if self._left < 0:
                    raise PacsFault(Fault.BAD_ANSWER)
            yield chunk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)


class _Bearer(AuthBase):
    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def _session(spec: PacsSpec, credentials: str) -> requests.Session:
    """Nothing is taken from the environment: no proxy, no .netrc, no other authorities."""
    session = requests.Session()
    session.trust_env = False
    session.max_redirects = 0
    session.verify = str(spec.ca_file) if spec.ca_file else True
    session.cert = str(spec.client_certificate) if spec.client_certificate else None
    session.headers.update({"User-Agent": "ghostnet", "Accept-Encoding": "identity"})
    user, colon, password = credentials.partition(":")
    if credentials.startswith("Bearer ") or (credentials and not colon):
        session.auth = _Bearer(credentials.removeprefix("Bearer ").strip())
    elif credentials:
        session.auth = HTTPBasicAuth(user.encode(), password.encode())
    return session


def _rows(page: Callable[[int, int], Any], key: str) -> dict[str, Any]:
    """All rows of a search by the UID at `key`, page by page until one brings nothing new."""
    rows: dict[str, Any] = {}
    offset = 0
    while True:
        try:
            with _faults():
                answer = page(_PAGE, offset)
        except PacsFault as fault:
            if fault.fault is Fault.WRONG_URL:  # the service was there: nothing of that study
                return rows
            raise
        if not isinstance(answer, list) or len(rows) > _MAX_LISTED:
            raise PacsFault(Fault.BAD_ANSWER)
        fresh = {uid: row for row in answer if is_uid(uid := _value(row, key)) and uid not in rows}
        if not fresh:
            return rows
        rows |= fresh
        offset += len(answer)


def _value(row: Any, key: str) -> str:
    """One value of the DICOM JSON model (PS3.18 annex F); "" where there is none."""
    try:
        value = row[key]["Value"][0]
    except (KeyError, IndexError, TypeError):
        return ""
    return value if isinstance(value, str) else ""


def _one_part(response: requests.Response) -> Iterator[bytes]:
    """The file in an answer of one part (RFC 2387), as it arrives.

    Raises:
        PacsFault: LOST when it ends early; BAD_ANSWER when there is none, or another.
    """
    chunks = _chunks(response)
    kind = Message()
    kind["content-type"] = response.headers.get("content-type", "")
    if kind.get_content_type() == "application/dicom":  # against the standard, and common
        yield from chunks
        return
    boundary = str(kind.get_boundary() or "")
    if kind.get_content_type() != "multipart/related" or not 0 < len(boundary) <= 200:
        raise PacsFault(Fault.BAD_ANSWER)
    end = b"\r\n--" + boundary.encode("latin-1", "replace")
    held = bytearray(b"\r\n")  # the first line is a boundary like the others
    start = -1
    while start < 0:
        held += _next(chunks)
        opening = held.find(end)
        start = held.find(b"\r\n\r\n", max(opening, 0) + len(end)) if opening >= 0 else -1
        if start > _MAX_ENVELOPE_BYTES or (start < 0 and len(held) > _MAX_ENVELOPE_BYTES + _CHUNK):
            raise PacsFault(Fault.BAD_ANSWER)
    del held[: start + 4]
    while (stop := held.find(end)) < 0:
        ready = max(0, len(held) - len(end) + 1)  # the rest may be the start of the end
        if ready:
            yield bytes(held[:ready])
            del held[:ready]
        held += _next(chunks)
    yield bytes(held[:stop])
    del held[: stop + len(end)]
    while len(held) < 2:
        held += _next(chunks)
    if held[:2] != b"--":
        raise PacsFault(Fault.BAD_ANSWER)
    for chunk in chunks:  # to the end, for the connection's next use
        held += chunk
        if len(held) > _MAX_ENVELOPE_BYTES:
            return


def _chunks(response: requests.Response) -> Iterator[bytes]:
    with _faults():
        yield from response.iter_content(_CHUNK)


def _next(chunks: Iterator[bytes]) -> bytes:
    chunk = next(chunks, b"")
    if not chunk:
        raise PacsFault(Fault.LOST)
    return chunk


@contextlib.contextmanager
def _faults() -> Iterator[None]:
    """Turns whatever the libraries raise, whose texts quote addresses and answers, into a cause."""
    try:
        yield
    except requests.RequestException as error:
        raise PacsFault(_cause(error)) from None
    except MemoryError:
        raise PacsFault(Fault.MEMORY) from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):  # JSON of another form
        raise PacsFault(Fault.BAD_ANSWER) from None
    except OSError:
        raise PacsFault(Fault.LOST) from None


def _cause(error: requests.RequestException) -> Fault:
    inner = list(_within(error))
    if isinstance(error, requests.TooManyRedirects):
        return Fault.REDIRECT
    if any(isinstance(one, ssl.SSLCertVerificationError) for one in inner):
        return Fault.CERTIFICATE
    if isinstance(error, requests.exceptions.SSLError):
        return Fault.TLS
    if isinstance(error, requests.Timeout):
        return Fault.TIMEOUT
    if isinstance(error, requests.HTTPError):
        return _of_status(error.response.status_code if error.response is not None else 0)
    if isinstance(error, requests.exceptions.ConnectionError | requests.exceptions.ChunkedEncodingError):
        return Fault.UNREACHABLE if any(isinstance(one, NewConnectionError) for one in inner) else Fault.LOST
    return Fault.BAD_ANSWER


def _of_status(status: int) -> Fault:
    if status in _OVERLOADED:
        return Fault.BUSY
    if status >= 500:
        return Fault.SERVER_ERROR
    named = {401: Fault.UNAUTHORIZED, 403: Fault.FORBIDDEN, 404: Fault.WRONG_URL}
    return named.get(status, Fault.BAD_ANSWER)


def _within(error: BaseException) -> Iterator[BaseException]:
    """The exception and those it wraps."""
    todo: list[object] = [error]
    for _ in range(20):
        if not todo:
            return
        one = todo.pop()
        if isinstance(one, BaseException):
            yield one
            todo += [*one.args, one.__cause__, one.__context__, getattr(one, "reason", None)]
