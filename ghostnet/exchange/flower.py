"""Messages as Flower carries them: one record of texts and whole numbers, and one of arrays for each group.

The only module of `ghostnet/exchange` that knows Flower; both apps use it, nothing else in the rooms below them does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from ghostnet.errors import FederationError
from ghostnet.exchange.arrays import Arrays
from ghostnet.exchange.messages import Plain

VALUES = "config"  # name of the record of texts and whole numbers


def to_records(plain: Plain) -> RecordDict:
    """A message as Flower's records."""
    groups = {name: to_record(arrays) for name, arrays in plain.arrays.items()}
    return add_values(RecordDict({**groups, VALUES: ConfigRecord()}), plain.values)


def add_values(content: RecordDict, values: Mapping[str, object]) -> RecordDict:
    """The same message with more texts and whole numbers; the arrays are shared, not copied."""
    merged: dict[str, Any] = {**content.config_records[VALUES], **values}
    return RecordDict({**content.array_records, VALUES: ConfigRecord(merged)})


def from_records(content: RecordDict) -> Plain:
    """Flower's records as a message; what it holds is checked by `messages`.

    Raises:
        FederationError: a record is of another kind, or its bytes are no arrays.
    """
    others = content.keys() - content.array_records.keys() - {VALUES}
    if others or VALUES not in content.config_records:
        raise FederationError(f"a message holds {len(others)} records beside its arrays and one {VALUES!r}")
    groups = {name: from_record(record) for name, record in content.array_records.items()}
    return Plain(values=dict(content.config_records[VALUES]), arrays=groups)


def to_record(arrays: Arrays) -> ArrayRecord:
    """Named arrays as Flower's record (np.save format, no pickle)."""
    return ArrayRecord({name: Array(np.ascontiguousarray(value)) for name, value in arrays.items()})


def from_record(record: ArrayRecord) -> Arrays:
    """Flower's record as named arrays; the checks are the caller's.

    Raises:
        FederationError: its bytes are no arrays.
    """
    try:
        arrays = {name: array.numpy() for name, array in record.items()}
    except Exception as error:  # what numpy's reader raises depends on the bytes
        raise FederationError(f"a message's bytes are no array in np.save's format ({type(error).__name__})") from None
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):
        raise FederationError("a message's bytes are no array in np.save's format, but an archive")
    return arrays
