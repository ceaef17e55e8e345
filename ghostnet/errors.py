"""The errors of GhostNet, each with the exit code that `ghostnet` ends with (docs/exit-codes.md).

Messages say what was given, what was expected and what to do. They are shown to the person at the keyboard; nothing
that a hospital sends to a coordinator is built from them (see `client.answering`).
"""


def printable(text: str) -> str:
    """Text of others for a terminal or a log: what is no printable character is escaped, so that it commands nothing.

    A terminal obeys control characters: they could wipe out a line that says FAIL. Nor may direction marks turn a line
    around.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


class GhostNetError(Exception):
    """A problem that a person can fix; shown as one line, without a traceback."""

    exit_code = 1


class PlanError(GhostNetError):
    """A plan.toml that cannot be run."""

    exit_code = 3


class SiteError(GhostNetError):
    """A site.toml, or the folder it names, that cannot be used."""

    exit_code = 4


class DataError(GhostNetError):
    """Images, labels or arrays that cannot be trained on."""

    exit_code = 5


class PolicyError(GhostNetError):
    """The hospital's own limits refuse the plan."""

    exit_code = 6


class BudgetError(PolicyError):
    """The request would spend more than the ledger has left."""

    exit_code = 7


class LedgerError(GhostNetError):
    """The ledger is damaged, rolled back, forked or in use by another process."""

    exit_code = 8


class SpentError(LedgerError):
    """A request that began before and did not end: it is spent, and never answered again."""

    exit_code = 14


class VerifyError(GhostNetError):
    """A sampler whose certificate does not hold; the message names the check."""

    exit_code = 9


class FederationError(GhostNetError):
    """A run that cannot go on: too few hospitals answered, or one answered with something else than asked."""

    exit_code = 10


class RunFolderError(GhostNetError):
    """The output folder is in use, or holds another run."""

    exit_code = 11


class MissingDependencyError(GhostNetError):
    """An optional part is not installed on this machine."""

    exit_code = 12


def not_installed(module: str, extra: str) -> MissingDependencyError:
    """The one sentence of a part that is not installed.

    Args:
        module: that could not be imported.
        extra: of this package, which brings it.
    """
    return MissingDependencyError(f"this needs {module}: {install_line(extra)}")


_AFTER_EXTRA = {
    "ocr": "pip install --no-deps rapidocr==3.8.4"
}  # the package asks for another OpenCV (deploy/README.md)


def install_line(extra: str) -> str:
    """The command that brings everything of an extra of this package."""
    return " && ".join(filter(None, (f"pip install 'ghostnet[{extra}]'", _AFTER_EXTRA.get(extra))))


class AuditError(GhostNetError):
    """An audit whose verdict is fail, or that could not be made; the message names the checks."""

    exit_code = 13


class UnknownKeysError(GhostNetError):
    """A sampler in which nothing was changed since it was signed, by keys of which nobody has said whose they are."""

    exit_code = 15


class Interrupted(GhostNetError):
    """Stopped from the keyboard; the message says how to go on."""

    exit_code = 130
