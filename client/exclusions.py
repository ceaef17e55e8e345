"""Patients who have withdrawn: a list that the hospital keeps, and whose patients no cohort has.

Withdrawal means no further training: from the next intake on the patient's images are left out of both parts of the
cohort, and their cached artefacts are deleted. It cannot reach back: samplers that were released stay released, under
the bound that their certificates give for each patient, this one included; and what the ledger has spent stays spent,
since it was spent on them.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from client.deidentify.pseudonyms import patient_key
from ghostnet.errors import SiteError

_MAX_BYTES = 1 << 26


def read_exclusions(path: Path, secret: bytes) -> frozenset[str]:
    """Reads a list of patients to leave out.

    One patient identifier a line, written as in the images or the label table; surrounding spaces do not count, empty
    lines and lines that begin with "#" are comments. The file is one of identifiers: keep it readable by the site's
    user alone (0600).

    Args:
        path: the text file, UTF-8.
        secret: the site's secret.

    Returns:
        The keys of these patients, as `patient_key` gives them. An identifier that no image has is in it too: that the
        patient has no image yet is no error.

    Raises:
        SiteError: the file is missing, unreadable, too large, not UTF-8 text or writable by everyone. A list that
            cannot be read ends the intake: going on without it would train on patients who said no. The message holds
            no line of the file.

    Guarantee:
        Whether a patient is left out depends on the list and this patient's identifier, not on another patient.
        Not covered: a person under a second identifier; write both.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise SiteError(
            f"[cohort].exclude = {path} cannot be read ({error.__class__.__name__}); give a text file with one patient "
            "identifier a line, or remove the key"
        ) from None
    if mode & stat.S_IWOTH:
        raise SiteError(f"[cohort].exclude = {path} can be changed by everyone on this machine; chmod 600 it")
    if len(data) > _MAX_BYTES:
        raise SiteError(f"[cohort].exclude = {path} is larger than {_MAX_BYTES >> 20} MiB; give one identifier a line")
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise SiteError(f"[cohort].exclude = {path} is not UTF-8 text; save it as UTF-8") from None
    identifiers = {line.strip(" \t\r\n\0") for line in lines}
    return frozenset(
        patient_key(secret, identifier) for identifier in identifiers if identifier and not identifier.startswith("#")
    )
