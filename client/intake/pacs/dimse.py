"""A PACS by DIMSE (PS3.7): C-FIND to list, C-GET or C-MOVE to fetch. Data sets are stored as received, never parsed."""

from __future__ import annotations

import itertools
import socket
import ssl
from collections.abc import Sequence
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import AE, _config, build_context, build_role, evt
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext

from client.deidentify.headers import SOP_CLASSES, TRANSFER_SYNTAXES
from client.intake.pacs.dimse_receiver import BATCH, PDU, DimseReceiver
from client.intake.pacs.faults import Fault, PacsFault
from client.intake.pacs.retrieval import Inbox
from client.intake.pacs.store import Listed, is_uid
from client.pacs_config import PacsSpec

_MAX_LISTED = 200_000
_MAX_CONTEXTS = 126  # of 128 that an association may propose, less the one of the request itself
_NATIVE = "1.2.840.10008.1.2"
_SUCCESS, _PENDING = 0x0000, (0xFF00, 0xFF01)
_MOVE_DESTINATION_UNKNOWN = 0xA801
# Study Root Query/Retrieve (PS3.4 section C.6.2)
_FIND = UID("1.2.840.10008.5.1.4.1.2.2.1")
_RETRIEVE = {"move": UID("1.2.840.10008.5.1.4.1.2.2.2"), "get": UID("1.2.840.10008.5.1.4.1.2.2.3")}

_config.LOG_HANDLER_LEVEL = "none"  # what is logged are identifiers
_config.LOG_REQUEST_IDENTIFIERS = _config.LOG_RESPONSE_IDENTIFIERS = False


class Dimse:
    """One application entity; see `retrieval.Archive`."""

    def __init__(self, spec: PacsSpec) -> None:
        self._spec = spec
        self._finder: Association | None = None
        self._getter: tuple[str, Association] | None = None  # for one SOP class
        self._server: Any = None
        self._receiver = DimseReceiver(spec)
        self._client_tls = _client_tls(spec)

    def verify_connection(self) -> None:
        self._find("STUDY", {"StudyInstanceUID": "1.2.3"})

    def studies(self, study_date: str, modalities: Sequence[str]) -> list[str]:
        found: dict[str, None] = {}
        for modality in modalities or ("",):
            asked = {"StudyDate": study_date, "ModalitiesInStudy": modality, "StudyInstanceUID": ""}
            for row in self._find("STUDY", asked):
                if is_uid(study := _text(row, "StudyInstanceUID")):
                    found[study] = None
        return list(found)

    def images(self, study: str, modalities: Sequence[str]) -> list[Listed]:
        modality = modalities[0] if len(modalities) == 1 else ""
        listed: dict[str, Listed] = {}
        asked = {"StudyInstanceUID": study, "SeriesInstanceUID": "", "Modality": modality}
        for row in self._find("SERIES", asked):
            series, kind = _text(row, "SeriesInstanceUID"), _text(row, "Modality")
            if not is_uid(series) or (modalities and kind and kind not in modalities):
                continue
            asked_of_it = {"StudyInstanceUID": study, "SeriesInstanceUID": series}
            for image in self._find("IMAGE", asked_of_it | {"SOPInstanceUID": "", "SOPClassUID": ""}):
                instance, sop_class = _text(image, "SOPInstanceUID"), _text(image, "SOPClassUID")
                if is_uid(instance):
                    known = sop_class if is_uid(sop_class) else ""
                    listed[instance] = Listed(series=series, instance=instance, sop_class=known, modality=kind)
        return list(listed.values())

    def retrieve(self, study: str, wanted: Sequence[Listed], inbox: Inbox) -> None:
        for (series, sop_class), group in itertools.groupby(wanted, lambda image: (image.series, image.sop_class)):
            names = [image.instance for image in group]
            for first in range(0, len(names), BATCH):
                self._retrieve(study, series, sop_class, names[first : first + BATCH], inbox)

    def close(self) -> None:
        for association in (self._finder, self._getter and self._getter[1]):
            if association is not None and association.is_established:
                association.release()
        if self._server is not None:
            self._server.shutdown()
        self._finder = self._getter = self._server = None

    def _find(self, level: str, asked: dict[str, str]) -> list[Dataset]:
        """The matches, all of them: pynetdicom's idle thread may snatch an answer, so they are counted on arrival."""
        association = self._find_association()
        rows: list[Dataset] = []
        arrived = 0

        def count(_: evt.Event) -> None:
            nonlocal arrived
            arrived += 1

        association.bind(evt.EVT_DIMSE_RECV, count)
        for status, row in association.send_c_find(_query(level, asked), _FIND):
            code = _code(association, status)
            if code in _PENDING and row is not None and len(rows) < _MAX_LISTED:
                rows.append(row)
            elif code != _SUCCESS:
                association.abort()
                raise PacsFault(Fault.BAD_ANSWER if code in _PENDING else Fault.QUERY_REFUSED)
        association.unbind(evt.EVT_DIMSE_RECV, count)
        if arrived != len(rows) + 1:
            raise PacsFault(Fault.LOST)
        return rows

    def _retrieve(self, study: str, series: str, sop_class: str, names: list[str], inbox: Inbox) -> None:
        """One request for some images of one series; one by one where one of them is beyond the limits."""
        association = self._retrieve_association(sop_class)
        query = _query("IMAGE", {"StudyInstanceUID": study, "SeriesInstanceUID": series, "SOPInstanceUID": names})
        with self._receiver.open(inbox) as receiver:
            try:
                self._ask(association, query, names)
            finally:
                if receiver.fault is not None:
                    association.abort()
                    raise PacsFault(receiver.fault) from None
                if receiver.too_large and len(names) == 1:
                    inbox.refused.add(names[0])
        if receiver.too_large and len(names) > 1:
            for name in names:
                if name in inbox.missing():
                    self._retrieve(study, series, sop_class, [name], inbox)

    def _ask(self, association: Association, query: Dataset, names: list[str]) -> None:
        model = _RETRIEVE[self._spec.retrieve]
        if self._spec.retrieve == "get":
            answers = association.send_c_get(query, model)
        else:
            answers = association.send_c_move(query, self._spec.calling_aet, model)
        code, heard = _SUCCESS, 0
        for status, _ in answers:
            if self._receiver.too_large:
                association.abort()
                return
            code, heard = _code(association, status), heard + 1
            if heard > 100 + 10 * len(names):
                association.abort()
                raise PacsFault(Fault.BAD_ANSWER)
        if code == _MOVE_DESTINATION_UNKNOWN:
            raise PacsFault(Fault.MOVE_DESTINATION)

    def _find_association(self) -> Association:
        if self._finder is None or not self._finder.is_established:
            self._finder = self._associate(_FIND, [])
        return self._finder

    def _retrieve_association(self, sop_class: str) -> Association:
        model = _RETRIEVE[self._spec.retrieve]
        storage: list[PresentationContext] = []
        if self._spec.retrieve == "get":
            storage = _storage_contexts(sop_class)
        else:
            sop_class = ""
            self._server = self._server or self._listen()
        if self._getter is not None and self._getter[0] == sop_class and self._getter[1].is_established:
            return self._getter[1]
        if self._getter is not None and self._getter[1].is_established:
            self._getter[1].release()
        self._getter = sop_class, self._associate(model, storage)
        return self._getter[1]

    def _associate(self, model: UID, storage: list[PresentationContext]) -> Association:
        entity = self._entity()
        classes = dict.fromkeys(str(context.abstract_syntax) for context in storage)
        association = entity.associate(
            self._spec.host,
            self._spec.port,
            contexts=[build_context(model), *storage],
            ae_title=self._spec.called_aet,
            max_pdu=PDU,
            ext_neg=[build_role(UID(uid), scp_role=True) for uid in classes],  # type: ignore[arg-type]
            evt_handlers=self._receiver.handlers(),
            tls_args=(self._client_tls, self._spec.host) if self._client_tls else None,
        )
        if not association.is_established:
            raise PacsFault(self._why_not(association))
        if not any(context.abstract_syntax == model for context in association.accepted_contexts):
            association.release()
            raise PacsFault(Fault.NO_SERVICE)
        return association

    def _why_not(self, association: Association) -> Fault:
        """The cause, which the library only logs: what the PACS answered, or what a bare connection meets."""
        if association.is_rejected:
            answer = association.acceptor.primitive
            result, reason = getattr(answer, "result", 0), getattr(answer, "diagnostic", 0)
            if result == 2:  # PS3.8 section 9.3.4: transient
                return Fault.BUSY
            if getattr(answer, "result_source", 0) == 1:
                return {3: Fault.CALLING_AE, 7: Fault.CALLED_AE}.get(int(reason or 0), Fault.REJECTED)
            return Fault.REJECTED
        address = (self._spec.host, self._spec.port)
        try:
            with socket.create_connection(address, self._spec.timeout_s) as bare:
                if self._client_tls is not None:
                    self._client_tls.wrap_socket(bare, server_hostname=self._spec.host).close()
        except ssl.SSLCertVerificationError:
            return Fault.CERTIFICATE
        except TimeoutError:
            return Fault.TIMEOUT
        except ssl.SSLError:
            return Fault.TLS
        except OSError:
            return Fault.UNREACHABLE
        return Fault.LOST

    def _entity(self) -> AE:
        entity = AE(ae_title=self._spec.calling_aet)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = self._spec.timeout_s
        entity.connection_timeout = self._spec.timeout_s
        entity.maximum_pdu_size = PDU
        return entity

    def _listen(self) -> Any:
        """The receiving end of C-MOVE: open only while fetching, and only to the PACS's title."""
        entity = self._entity()
        entity.require_called_aet = True
        entity.require_calling_aet = [self._spec.called_aet]
        entity.maximum_associations = 4
        for sop_class in SOP_CLASSES:
            entity.add_supported_context(sop_class, list(TRANSFER_SYNTAXES))
        try:
            return entity.start_server(
                (self._spec.move_address, self._spec.move_port),
                block=False,
                evt_handlers=self._receiver.handlers(),
                ssl_context=_server_tls(self._spec),
            )
        except OSError:
            raise PacsFault(Fault.MOVE_PORT) from None


def _storage_contexts(sop_class: str) -> list[PresentationContext]:
    """Contexts to receive in: one for every way of compression, so that the PACS sends what it has as it is."""
    classes = [sop_class] if sop_class else list(SOP_CLASSES)
    each = max(1, _MAX_CONTEXTS // len(classes))
    syntaxes = sorted(TRANSFER_SYNTAXES, key=lambda syntax: (syntax == _NATIVE, len(syntax)))
    if each >= len(syntaxes):
        return [build_context(name, syntax) for name in classes for syntax in syntaxes]
    return [build_context(name, syntaxes) for name in classes[:_MAX_CONTEXTS]]


def _query(level: str, asked: dict[str, Any]) -> Dataset:
    query = Dataset()
    query.QueryRetrieveLevel = level
    for name, value in asked.items():
        setattr(query, name, value)
    return query


def _text(row: Dataset, name: str) -> str:
    try:
        return str(row.get(name) or "").strip(" \0")
    except Exception:  # noqa: BLE001 - pydicom converts values late and may raise anything
        return ""


def _code(association: Association, status: Dataset) -> int:
    """The status of an answer.

    Raises:
        PacsFault: there was none: the connection is gone, or nothing came in time.
    """
    if "Status" in status:
        return int(status.Status)
    if association.is_established:
        association.abort()
    raise PacsFault(Fault.LOST)


def _client_tls(spec: PacsSpec) -> ssl.SSLContext | None:
    if not spec.tls:
        return None
    context = ssl.create_default_context(cafile=spec.ca_file)
    if spec.client_certificate:
        context.load_cert_chain(spec.client_certificate)
    return context


def _server_tls(spec: PacsSpec) -> ssl.SSLContext | None:
    if not spec.tls or spec.client_certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=spec.ca_file)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(spec.client_certificate)
    return context
