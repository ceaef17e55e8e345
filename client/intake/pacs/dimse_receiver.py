"""The receiver of data sets by DIMSE, within bounds on what a peer may send."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

from pynetdicom import evt
from pynetdicom.dsutils import encode_file_meta

from client.intake.pacs.faults import Fault, PacsFault
from client.intake.pacs.retrieval import Inbox, Pace
from client.intake.pacs.store import is_uid
from client.pacs_config import PacsSpec

PDU = 1 << 17  # bytes a message part may have; what is announced to the PACS
BATCH = 32  # images a request names
_STORED, _OUT_OF_RESOURCES, _NOT_WANTED = 0x0000, 0xA700, 0xC000  # PS3.4 table B.2-1


class DimseReceiver:
    """Receives data sets, on any association and thread; bounds what a peer may send."""

    def __init__(self, spec: PacsSpec) -> None:
        self.fault: Fault | None = None
        self.too_large = False
        self._spec = spec
        self._inbox: Inbox | None = None
        self._stopped = False
        self._heard = 0
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def open(self, inbox: Inbox) -> Iterator[DimseReceiver]:
        """Takes files while the block runs; outside of it everything is turned away."""
        with self._lock:
            self.fault, self.too_large, self._heard = None, False, 0
            self._inbox = inbox
        try:
            yield self
        finally:
            with self._lock:  # a file that is being written is finished first
                self._inbox, self._stopped = None, False

    def handlers(self) -> list[Any]:
        """For any association."""
        return [(evt.EVT_CONN_OPEN, self._connected), (evt.EVT_C_STORE, self._arrived)]

    def _connected(self, event: evt.Event) -> None:
        """Puts bounds on what is read from the peer: pynetdicom itself takes parts of up to 4 GiB, without end."""
        wrapped = event.assoc.dul.socket
        if wrapped is None or wrapped.socket is None:
            return
        wrapped.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # a message is two small writes
        wrapped.socket.settimeout(self._spec.timeout_s)
        bounded = _Bounded(wrapped.socket, self._spec, self)
        wrapped.recv = bounded.recv  # type: ignore[method-assign, assignment]
        event.assoc.bind(evt.EVT_DIMSE_RECV, lambda _: bounded.restart())

    def admit(self, size: int, most: int) -> None:
        """Lets `size` more bytes in.

        Raises:
            ConnectionAbortedError: enough has come; pynetdicom then ends the association.
        """
        if size > most:
            self.too_large = True
        if self._stopped or size > most:
            raise ConnectionAbortedError

    def _arrived(self, event: evt.Event) -> int:
        request: Any = event.request
        instance, data = str(request.AffectedSOPInstanceUID), request.DataSet
        with self._lock:
            self._heard += 1
            if self._heard > 3 * BATCH:
                return self._stop(Fault.BAD_ANSWER)
            if self._inbox is None or data is None or not is_uid(instance):
                return _NOT_WANTED
            head = b"\0" * 128 + b"DICM" + encode_file_meta(event.file_meta)
            try:
                kept = self._inbox.put(instance, (head, data.getbuffer()))
            except PacsFault as fault:
                return self._stop(fault.fault)
            except MemoryError:
                return self._stop(Fault.MEMORY)
            return _STORED if kept else _NOT_WANTED

    def _stop(self, fault: Fault) -> int:
        self.fault, self._stopped = fault, True
        return _OUT_OF_RESOURCES


class _Bounded:
    """Reads from the peer's connection, within the limits on one part, one message and its pace."""

    def __init__(self, connection: socket.socket, spec: PacsSpec, receiver: DimseReceiver) -> None:
        self._connection = connection
        self._most = spec.file_bytes + 4 * PDU
        self._pace = Pace(spec.timeout_s)
        self._receiver = receiver

    def restart(self) -> None:
        """A whole message came; another may begin."""
        self._pace.restart()

    def recv(self, wanted: int) -> bytearray:
        """As many bytes as wanted; fewer where the peer closes the connection.

        Raises:
            OSError: beyond a limit; pynetdicom then ends the association.
        """
        self._receiver.admit(wanted, min(2 * PDU, self._most - self._pace.received))
        held = bytearray(wanted)
        view, have = memoryview(held), 0
        while have < wanted:
            size = self._connection.recv_into(view[have:])
            if not size:
                break
            have += size
            try:
                self._pace.count(size)
            except PacsFault:
                raise TimeoutError from None
        view.release()
        del held[have:]
        return held
