"""More than a thousand ways to change a published sampler's folder, each small, each to be named by `ghostnet verify`.

A change is a name and a function of a folder. What a coordinator can sign again, it does: the files' digests in the
certificate and the certificate itself. What a hospital signed it cannot.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ghostnet.certificate.certificate import certificate_bytes, file_sha256
from ghostnet.evidence import keys
from tests.samplers import SERVER, SITES

CERTIFICATE = "certificate.json"
BYTES = 60  # flipped in each file, one at a time
JSON = ("config.json", CERTIFICATE)
STRANGE = (
    "evil.py",
    ".hidden",
    "other.safetensors",
    "README.md~",
    "Readme.md",
    "certificate.json.new",
    "x" * 200,
    "\n",
)


@dataclass(frozen=True, kw_only=True)
class Change:
    """One change; `about` are words of which one must appear where it is named."""

    name: str
    apply: Callable[[Path], object]
    about: tuple[str, ...]


def changes(folder: Path) -> Iterator[Change]:
    """All changes of a good folder, the same ones for the same folder."""
    names = sorted(path.name for path in folder.iterdir())
    chance = random.Random(5)
    for name in names:
        yield from _of_bytes(name, (folder / name).stat().st_size, chance)
        yield from _of_the_file(name, [other for other in names if other != name])
    for name in STRANGE:
        yield _changed(f"{name!r} added", lambda f, n=name: (f / n).write_text("x"), *_said(name))
        yield _changed(f"folder {name!r} added", lambda f, n=name: (f / n).mkdir(), *_said(name))
    yield from _of_certificate(json.loads((folder / CERTIFICATE).read_text()))
    yield from _of_config(json.loads((folder / "config.json").read_text()))
    yield from _of_card((folder / "README.md").read_text().splitlines(keepends=True))
    yield from _of_statements(json.loads((folder / CERTIFICATE).read_text())["statements"])


def _said(name: str) -> tuple[str, ...]:
    return (repr(name)[:80],)  # as the check prints a name that somebody else chose


def sign_certificate(folder: Path, certificate: dict[str, Any]) -> None:
    """The coordinator signs again whatever it likes."""
    certificate.pop("signature", None)
    certificate["signature"] = keys.sign(SERVER, certificate)
    (folder / CERTIFICATE).write_bytes(certificate_bytes(certificate))


def _changed(name: str, apply: Callable[[Path], object], *about: str) -> Change:
    return Change(name=name, apply=apply, about=about)


def _of_bytes(name: str, size: int, chance: random.Random) -> Iterator[Change]:
    unread = ("server signature", "certificate form") if name == CERTIFICATE else ()
    for place in chance.sample(range(size), min(size, BYTES)):
        bit = 1 << chance.randrange(8)
        yield _changed(f"{name}: bit {bit} of byte {place}", partial(_flip, name, place, bit), name, *unread)
    for more in (b"\0", b"\n", b" "):
        yield _changed(f"{name}: {more!r} added", partial(_append, name, more), name)
    for left in (0, 1, size // 2, size - 1):
        yield _changed(f"{name}: cut to {left} bytes", partial(_cut, name, left), name)


def _flip(name: str, place: int, bit: int, folder: Path) -> None:
    data = bytearray((folder / name).read_bytes())
    data[place] ^= bit
    (folder / name).write_bytes(data)


def _append(name: str, more: bytes, folder: Path) -> None:
    (folder / name).write_bytes((folder / name).read_bytes() + more)


def _cut(name: str, left: int, folder: Path) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:left])


def _of_the_file(name: str, others: list[str]) -> Iterator[Change]:
    yield _changed(f"{name} removed", lambda f: (f / name).unlink(), name)
    yield _changed(f"{name} renamed", lambda f: (f / name).rename(f / f"{name}.bak"), name)
    yield _changed(f"{name} a link to itself elsewhere", partial(_link, name), name)
    yield _changed(f"{name} a folder", partial(_folder, name), name)
    for other in others:
        yield _changed(f"{name} and {other} swapped", partial(_swap, name, other), name, other)
        yield _changed(f"{name} a copy of {other}", partial(_copy, other, name), name)


def _link(name: str, folder: Path) -> None:
    elsewhere = folder.parent / f"elsewhere-{name}"
    (folder / name).rename(elsewhere)
    (folder / name).symlink_to(elsewhere)


def _folder(name: str, folder: Path) -> None:
    (folder / name).unlink()
    (folder / name).mkdir()


def _swap(name: str, other: str, folder: Path) -> None:
    (folder / name).rename(folder / "held")
    (folder / other).rename(folder / name)
    (folder / "held").rename(folder / other)


def _copy(source: str, target: str, folder: Path) -> None:
    (folder / target).write_bytes((folder / source).read_bytes())


def _paths(value: object, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where every field and every item of a JSON document is."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from _paths(inner, (*path, key))


def _at(document: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        document = document[key]
    return document


def _other(value: object) -> object:
    """Another value of the same kind, as close as it gets."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value - 1.9e-4
    if isinstance(value, str):
        return f"{value[:-1]}{'0' if value[-1:] != '0' else '1'}"
    return [*value, "x"] if isinstance(value, list) else {**value, "x": 0}  # type: ignore[dict-item]


def _edit(document: Any, path: tuple[Any, ...], how: str) -> None:
    parent, key = _at(document, path[:-1]), path[-1]
    if how == "deleted":
        del parent[key]
    else:
        parent[key] = {"changed": _other(parent[key]), "null": None, "a number": 0.5, "a text": "anonymous"}[how]


def _of_certificate(certificate: dict[str, Any]) -> Iterator[Change]:
    """Every field of the certificate, signed again by the coordinator."""
    for path in _paths(certificate):
        if path == ("signature",):
            continue
        hows = ("deleted", "changed", "null") if path[0] in ("statements", "plan") else ("deleted", "changed", "a text")
        about = tuple(str(key) for key in path if isinstance(key, str))
        if path[0] == "statements" and len(path) > 1:
            about = (f"statement {certificate['statements'][path[1]]['site']}", "statements", "keys")
        for how in hows:
            if how != "null" or _at(certificate, path) is not None:
                where = ".".join(map(str, path))
                yield _changed(f"certificate: {where} {how}", partial(_certificate_edit, path, how), *about)
    yield _changed("certificate: field added", partial(_certificate_added, {"note": "anonymous"}), "note")
    yield _changed("certificate: no signature", partial(_unsigned), "server signature")


def _certificate_edit(path: tuple[Any, ...], how: str, folder: Path) -> None:
    certificate = json.loads((folder / CERTIFICATE).read_text())
    _edit(certificate, path, how)
    sign_certificate(folder, certificate)


def _certificate_added(fields: dict[str, Any], folder: Path) -> None:
    sign_certificate(folder, {**json.loads((folder / CERTIFICATE).read_text()), **fields})


def _unsigned(folder: Path) -> None:
    certificate = json.loads((folder / CERTIFICATE).read_text())
    del certificate["signature"]
    (folder / CERTIFICATE).write_bytes(certificate_bytes(certificate))


def _write_signed(name: str, data: bytes, folder: Path) -> None:
    """Writes a file, and the coordinator puts its digest into the certificate, though no hospital signed it."""
    (folder / name).write_bytes(data)
    certificate = json.loads((folder / CERTIFICATE).read_text())
    certificate["files"][name] = file_sha256(folder / name)
    sign_certificate(folder, certificate)


def _of_config(config: dict[str, Any]) -> Iterator[Change]:
    for path in _paths(config):
        for how in ("deleted", "changed", "a text"):
            document = json.loads(json.dumps(config))
            _edit(document, path, how)
            data = (json.dumps(document, indent=2) + "\n").encode()
            where = ".".join(map(str, path))
            yield _changed(f"config: {where} {how}", partial(_write_signed, "config.json", data), "config.json")


def _of_card(lines: list[str]) -> Iterator[Change]:
    claim = "Epsilon 0.01: anonymous data.\n"
    for place, line in enumerate(lines):
        rest = lines[:place], lines[place + 1 :]
        for what, new in (("deleted", []), ("claims more", [claim]), ("ends in a blank", [line.rstrip("\n") + " \n"])):
            data = "".join([*rest[0], *new, *rest[1]]).encode()
            yield _changed(f"card: line {place + 1} {what}", partial(_write_signed, "README.md", data), "README.md")


def _of_statements(statements: list[dict[str, Any]]) -> Iterator[Change]:
    """A hospital left out, doubled, of another key, or that itself signs less than it spent."""
    for place, statement in enumerate(statements):
        site = statement["site"]
        yield _changed(f"{site} left out", partial(_left_out, place), site, "keys")
        yield _changed(f"{site} twice", partial(_doubled, place), site, "statements", "keys")
        numbers = [p for p in _paths(statement) if isinstance(_at(statement, p), float) and "epsilon" in str(p[-1])]
        for path in numbers:
            if path[-1] != "max_epsilon":
                where = ".".join(map(str, path))
                yield _changed(f"{site} signs {where} lowered", partial(_lowered, place, path), f"statement {site}")


def _left_out(place: int, folder: Path) -> None:
    certificate = json.loads((folder / CERTIFICATE).read_text())
    gone = certificate["statements"].pop(place)
    del certificate["ledger_heads"][gone["site"]]
    sign_certificate(folder, certificate)


def _doubled(place: int, folder: Path) -> None:
    certificate = json.loads((folder / CERTIFICATE).read_text())
    certificate["statements"].insert(place, certificate["statements"][place])
    sign_certificate(folder, certificate)


def _lowered(place: int, path: tuple[Any, ...], folder: Path) -> None:
    """By 1.9e-4: less than two steps of the grid, which a tolerance for other machines once let pass."""
    certificate = json.loads((folder / CERTIFICATE).read_text())
    statement = certificate["statements"][place]
    _edit(statement, path, "changed")
    del statement["signature"]
    statement["signature"] = keys.sign(SITES[statement["site"]], statement)
    sign_certificate(folder, certificate)
