"""Why a PACS did not give its images: a closed list, because any longer text could hold what the images hold."""

from __future__ import annotations

from enum import StrEnum


class Fault(StrEnum):
    """One cause. `EXPLAINED` says it, and what to do, in words."""

    UNREACHABLE = "UNREACHABLE"
    TIMEOUT = "TIMEOUT"
    LOST = "LOST"
    BUSY = "BUSY"
    SERVER_ERROR = "SERVER_ERROR"
    BAD_ANSWER = "BAD_ANSWER"
    UNAUTHORIZED = "UNAUTHORIZED"
    FORBIDDEN = "FORBIDDEN"
    CERTIFICATE = "CERTIFICATE"
    TLS = "TLS"
    REDIRECT = "REDIRECT"
    WRONG_URL = "WRONG_URL"
    CALLED_AE = "CALLED_AE"
    CALLING_AE = "CALLING_AE"
    REJECTED = "REJECTED"
    NO_SERVICE = "NO_SERVICE"
    QUERY_REFUSED = "QUERY_REFUSED"
    MOVE_DESTINATION = "MOVE_DESTINATION"
    MOVE_PORT = "MOVE_PORT"
    TOTAL_LIMIT = "TOTAL_LIMIT"
    DISK_FULL = "DISK_FULL"
    DISK = "DISK"
    IN_USE = "IN_USE"
    MEMORY = "MEMORY"
    CRASHED = "CRASHED"


EXPLAINED: dict[Fault, str] = {
    Fault.UNREACHABLE: "nothing answers there; check host, port and firewall",
    Fault.TIMEOUT: "it did not answer within [pacs].timeout_s; try again later or raise it",
    Fault.LOST: "it broke the connection and did not come back within [pacs].patience_s; start again to go on",
    Fault.BUSY: "it takes no further association for now; try again later",
    Fault.SERVER_ERROR: "it reports an error of its own (HTTP 5xx); ask its administrator",
    Fault.BAD_ANSWER: "what answers there does not speak the protocol as agreed; check [pacs].url or protocol",
    Fault.UNAUTHORIZED: "wrong credentials (HTTP 401); correct the file [pacs].credentials",
    Fault.FORBIDDEN: "these credentials may not do this (HTTP 403); ask its administrator for the right to query "
    "and retrieve",
    Fault.CERTIFICATE: "its certificate is not trusted, or is for another name; set [pacs].ca_file to the authority "
    "that signed it",
    Fault.TLS: "no TLS connection could be made; it may want [pacs].client_certificate, or no TLS on this port",
    Fault.REDIRECT: "it sends on to another address, which is not followed; give the final one as [pacs].url",
    Fault.WRONG_URL: "there is no DICOMweb service at this path (HTTP 404); correct [pacs].url",
    Fault.CALLED_AE: "it does not know itself by [pacs].called_aet (association rejected); correct the title",
    Fault.CALLING_AE: "it does not know [pacs].calling_aet (association rejected); have the title registered there",
    Fault.REJECTED: "it rejected or aborted the association; have [pacs].calling_aet and this machine registered there",
    Fault.NO_SERVICE: "it does not offer query and retrieve to [pacs].calling_aet; have it allowed there, or use the "
    "other [pacs].retrieve",
    Fault.QUERY_REFUSED: "it refused the query; have [pacs].calling_aet allowed to find and retrieve",
    Fault.MOVE_DESTINATION: "it does not know [pacs].calling_aet as a destination (C-MOVE); have the title, address "
    "and [pacs].move_port registered there",
    Fault.MOVE_PORT: "this machine cannot listen on [pacs].move_address and move_port; choose a free port",
    Fault.TOTAL_LIMIT: "more than [pacs].max_total_gib would be stored; raise it or ask for fewer studies",
    Fault.DISK_FULL: "the disk of the state folder is full; make room and start again, what came is kept",
    Fault.DISK: "the state folder cannot be written; give the site's user access to it",
    Fault.IN_USE: "another program is fetching into this state folder; wait for it to end",
    Fault.MEMORY: "the memory of this machine did not suffice; lower [pacs].max_file_mib",
    Fault.CRASHED: "the program that fetches ended unexpectedly; run `ghostnet doctor`",
}

PASSING = frozenset({Fault.UNREACHABLE, Fault.TIMEOUT, Fault.LOST, Fault.BUSY})
"""Of a server that restarts: worth waiting for."""

OF_ONE_STUDY = frozenset({Fault.SERVER_ERROR, Fault.BAD_ANSWER, Fault.FORBIDDEN, Fault.QUERY_REFUSED, Fault.MEMORY})
"""May be about one study; the others are still asked for."""


class PacsFault(Exception):
    """The PACS, or the way to it, failed. Carries a cause and nothing else."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.value)
        self.fault = fault


class FileRefused(Exception):
    """One file that was sent is not kept: too large, or another than asked for. Carries nothing."""
