"""site.toml, written: every key explained by the words of its field. Whoever writes one does it here."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from client.config import SiteConfig, load_site
from ghostnet.errors import SiteError
from ghostnet.plan.template import file_text

_HEADING = "One hospital. Every path is relative to this file. A key with a # in front is left out and has its default."


def site_text(values: Mapping[str, object], *, about: str = "") -> str:
    """A site.toml with every key and its explanation.

    Args:
        values: by dotted key ("data.path"); paths as text. The kind of data and the protocol decide which other keys
            are shown as left out.
        about: a first line, for whoever reads the file.
    """
    chosen = {str(values[name]) for name in ("data.kind", "pacs.protocol") if name in values}
    heading = f"{about}\n{_HEADING}" if about else _HEADING
    return file_text(SiteConfig, values, heading=heading, chosen=chosen)


def write_site(target: Path, values: Mapping[str, object], *, about: str = "") -> None:
    """Writes a site.toml, after `load_site` has read the very same text; see `site_text`.

    Raises:
        SiteError: the values do not fit together, or there is such a file already; nothing is left behind, no new
            folder either.
    """
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    new = [folder for folder in target.parents if not os.path.lexists(folder)]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(site_text(values, about=about), encoding="utf-8")
        load_site(draft)
        os.link(draft, target)
    except SiteError as error:
        said = str(error).replace(str(draft), str(target))
        raise SiteError(f"{said} (it was not written: give another value)") from None
    except UnicodeEncodeError as error:
        line = error.object[: error.end].rpartition("\n")[2]
        raise SiteError(f"{line!r} is no UTF-8 text, as {target} has to be; rename that file or folder") from None
    except OSError as error:
        refuse_existing(target)
        raise SiteError(f"{target} cannot be written ({error.__class__.__name__}); give a folder that can") from None
    finally:
        with contextlib.suppress(OSError):  # no such folder, or one that somebody uses by now
            draft.unlink(missing_ok=True)
            for folder in new:
                folder.rmdir()


def refuse_existing(target: Path) -> None:
    """Refuses to write over a site.toml.

    Raises:
        SiteError: there is one.
    """
    if os.path.lexists(target):
        raise SiteError(f"{target} is there already; edit it, or give another folder")
