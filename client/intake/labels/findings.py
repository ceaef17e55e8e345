"""Findings of a label table to one label of the plan, by rules that the hospital states in site.toml.

The rules, in the order in which they are tried:

1. A finding stands for the label that `[labels].map` gives it, or for the label of its own name. One mapped to
   "drop", or to nothing in a layout with many findings, says nothing.
2. Exactly one label among the findings that are present: that one.
3. Several: `several` leaves the image out ("drop") or takes the first in the plan's order ("first").
4. None present, but one uncertain: `uncertain` leaves the image out ("drop") or names the label it gets.
5. None at all: `missing`, likewise.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from client.config import DROP, LabelSpec
from client.quarantine import Code
from ghostnet.errors import SiteError


def check_rules(rules: LabelSpec, labels: Sequence[str], *, findings: Collection[str] = (), source: str) -> None:
    """Refuses rules that name a label the plan does not have, or a finding that the layout does not have.

    Args:
        rules: the `[labels]` table.
        labels: the plan's labels.
        findings: every finding of the layout; empty where the layout has no closed list.
        source: the site file, for messages.

    Raises:
        SiteError: which key, and what it may be. Nothing of the data is looked at.
    """
    mapped = [(f'map."{finding}"', label) for finding, label in rules.map.items()]
    for key, label in [*mapped, ("uncertain", rules.uncertain), ("missing", rules.missing)]:
        if label != DROP and label not in labels:
            raise SiteError(
                f'[labels].{key} = {label!r} is no label of the plan ({", ".join(labels)}) and not "drop"; '
                f"correct it in {source}"
            )
    unknown = [name for name in rules.map if findings and name not in findings]
    if unknown:
        raise SiteError(f"[labels].map names {unknown[0]!r}, no finding of this layout; correct it in {source}")
    if findings and not any(label_of_finding(name, rules, labels) for name in findings):
        raise SiteError(
            f"no finding of this layout stands for a label of the plan ({', '.join(labels)}); "
            f"set [labels].map in {source}"
        )


def known_findings(rules: LabelSpec, labels: Sequence[str]) -> set[str]:
    """Findings that the rules say something about."""
    return set(rules.map) | set(labels)


def label_of_finding(finding: str, rules: LabelSpec, labels: Sequence[str]) -> str | None:
    """The plan's label that a finding stands for, or None."""
    label = rules.map.get(finding, finding)
    return label if label in labels else None


def plan_label(
    present: Collection[str], uncertain: Collection[str], rules: LabelSpec, labels: Sequence[str]
) -> int | Code:
    """One image's label by the rules above.

    Args:
        present: findings that the table says are there.
        uncertain: findings that it calls uncertain.
        rules: the `[labels]` table.
        labels: the plan's labels.

    Returns:
        Index into `labels`, or why the image is left out.
    """
    sure = _indices(present, rules, labels)
    if len(sure) == 1 or (sure and rules.several == "first"):
        return min(sure)
    if sure:
        return Code.SEVERAL_LABELS
    if _indices(uncertain, rules, labels):
        return Code.UNCERTAIN_LABEL if rules.uncertain == DROP else labels.index(rules.uncertain)
    return Code.NO_LABEL if rules.missing == DROP else labels.index(rules.missing)


def rules_in_words(rules: LabelSpec) -> dict[str, str]:
    """The effect of the rules, for `ghostnet site check`."""

    def outcome(label: str) -> str:
        return "left out" if label == DROP else f"labelled {label}"

    first = "the first in the plan's order" if rules.several == "first" else "left out"
    return {
        "several labels present": first,
        "only uncertain ones": outcome(rules.uncertain),
        "none": outcome(rules.missing),
    }


def _indices(findings: Collection[str], rules: LabelSpec, labels: Sequence[str]) -> set[int]:
    named = (label_of_finding(finding, rules, labels) for finding in findings)
    return {labels.index(label) for label in named if label is not None}
