"""The cost of many runs together: every event of every run, by two accountants that must not contradict each other."""

from __future__ import annotations

from collections.abc import Sequence

from ghostnet.accounting.epsilon import accountants_agree, epsilon_pld, epsilon_rdp
from ghostnet.accounting.events import EVENT_TYPES, Event
from ghostnet.errors import LedgerError


def compose(events: Sequence[Event], delta: float) -> tuple[float, float]:
    """Epsilon of all `events` together by PLD and by RDP, per patient, add/remove one; infinite without noise.

    Raises:
        LedgerError: an event of a type that is not accounted for, or PLD above RDP (PLD is the tighter of the two).
    """
    for event in events:
        if type(event) not in EVENT_TYPES:
            raise LedgerError(f"{event!r} is no event that this ledger can count; nothing is charged")
    pld, rdp = float(epsilon_pld(events, delta)), float(epsilon_rdp(events, delta))
    if not accountants_agree(pld, rdp):
        raise LedgerError(f"the accountants disagree: epsilon {pld} by PLD, {rdp} by RDP; nothing is charged")
    return pld, rdp
