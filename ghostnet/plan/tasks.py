"""The utility tasks that a plan may name; `REGISTRY` is the list of them.

A new task is a file of `ghostnet/utility/` that ends in a `TASK` (`ghostnet/utility/task.py`), and a line below. The
list stands here because a plan names tasks and the catalogue charges them before anything can train one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal


@dataclass(frozen=True, kw_only=True)
class TaskEntry:
    """The facts of a task that are known without its code.

    Attributes:
        module: that holds its `TASK`.
        event: name of its released counts in ledger, statement and certificate.
        array: name of its released counts in a hospital's answer.
        needs_masks: whether a plan that names it has to have mask channels.
    """

    module: str
    event: str
    array: str
    needs_masks: bool = False


REGISTRY = {
    "classification": TaskEntry(
        module="ghostnet.utility.classification", event="utility counts", array="noised_counts"
    ),
}
"""Name in a plan -> what is known of the task. The first is a plan's default."""

if TYPE_CHECKING:
    TaskName = str
else:
    TaskName = Literal[tuple(REGISTRY)]  # a closed list where a plan is read
