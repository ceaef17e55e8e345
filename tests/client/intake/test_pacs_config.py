"""[pacs] in site.toml: what cannot work, or only without protection, is refused before anything is sent."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.intake.pacs.fetch import fetch_studies
from client.pacs_config import PacsSpec, check_pacs, read_credentials
from ghostnet.errors import DataError, SiteError
from ghostnet.plan.toml import read_table
from ghostnet.progress import silent

WEB = {"protocol": "dicomweb", "url": "https://pacs.example/dicom-web"}
DIMSE = {"protocol": "dimse", "host": "pacs.example", "called_aet": "PACS"}
MOVE = DIMSE | {"retrieve": "move", "move_address": "192.0.2.10"}


def spec(table: dict[str, object], **changes: object) -> PacsSpec:
    return read_table(PacsSpec, table | changes, source="site.toml", error=SiteError, prefix="pacs")


@pytest.mark.parametrize("table", [WEB, DIMSE, MOVE, WEB | {"study_date": "20200101-", "modalities": ["CR"]}])
def test_a_usable_table_passes(table: dict[str, object]) -> None:
    check_pacs(spec(table), "site.toml")


@pytest.mark.parametrize(
    ("table", "key"),
    [
        (WEB | {"url": ""}, "url"),
        (WEB | {"url": "ftp://pacs"}, "url"),
        (WEB | {"url": "https://anna:secret@pacs/x"}, "url"),
        (WEB | {"url": "anna:secret@pacs/x"}, "url"),
        (WEB | {"url": "https://pacs/\n"}, "url"),
        (WEB | {"url": "https://pacs\0/x"}, "url"),
        (WEB | {"url": "https://pa cs/x"}, "url"),
        (WEB | {"study_date": "\N{ARABIC-INDIC DIGIT TWO}" * 8}, "study_date"),
        (DIMSE | {"host": "pacs\nx"}, "host"),
        (WEB | {"url": "https://[::1]:8042/x"}, "url"),
        (WEB | {"url": "https://pacs:port/x"}, "url"),
        (WEB | {"url": "https://pacs/x?y=1"}, "url"),
        (WEB | {"url": "http://pacs.example/x", "credentials": "c"}, "url"),
        (WEB | {"host": "pacs"}, "host"),
        (WEB | {"study_date": "2020"}, "study_date"),
        (WEB | {"modalities": ["../CR"]}, "modalities"),
        (WEB | {"timeout_s": 0.0}, "timeout_s"),
        (WEB | {"patience_s": float("nan")}, "patience_s"),
        (WEB | {"max_file_mib": 0}, "max_file_mib"),
        (WEB | {"max_total_gib": 0.0}, "max_total_gib"),
        (DIMSE | {"url": "https://pacs"}, "url"),
        (DIMSE | {"host": ""}, "host"),
        (DIMSE | {"called_aet": ""}, "called_aet"),
        (DIMSE | {"calling_aet": "SEVENTEEN_LETTERS"}, "calling_aet"),
        (DIMSE | {"calling_aet": "BACK\\SLASH"}, "calling_aet"),
        (DIMSE | {"port": 0}, "port"),
        (DIMSE | {"ca_file": "ca.pem"}, "ca_file"),
        (DIMSE | {"credentials": "c"}, "credentials"),
        (MOVE | {"move_address": "pacs.example"}, "move_address"),
        (MOVE | {"tls": True}, "ca_file"),
    ],
)
def test_a_table_that_cannot_work_is_refused_and_names_its_key(table: dict[str, object], key: str) -> None:
    with pytest.raises(SiteError) as raised:
        check_pacs(spec(table), "site.toml")
    assert key in str(raised.value)
    assert "secret" not in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("mode", "fine"), [(0o600, True), (0o400, True), (0o640, False), (0o604, False)])
def test_credentials_that_others_may_read_are_refused(mode: int, fine: bool, tmp_path: Path) -> None:
    file = tmp_path / "pacs.secret"
    file.write_text("anna:se cret\n")
    file.chmod(mode)
    web = spec(WEB, credentials=str(file))
    if fine:
        assert read_credentials(web) == "anna:se cret"
    else:
        with pytest.raises(SiteError, match="chmod 600"):
            read_credentials(web)


@pytest.mark.parametrize("text", ["", "one\ntwo\n", "bad\x00byte", "\xff"])
def test_credentials_that_are_no_line_of_text_are_refused_and_not_quoted(text: str, tmp_path: Path) -> None:
    file = tmp_path / "pacs.secret"
    file.write_bytes(text.encode("latin-1"))
    file.chmod(0o600)
    with pytest.raises(SiteError, match="not one line of text") as raised:
        read_credentials(spec(WEB, credentials=str(file)))
    assert "two" not in str(raised.value)


def test_a_missing_or_foreign_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="cannot be read"):
        read_credentials(spec(WEB, credentials=str(tmp_path / "none")))
    other = tmp_path / "other"
    other.write_text("text")
    other.chmod(0o600)
    with pytest.raises(SiteError, match="holds no certificate"):
        read_credentials(spec(WEB, ca_file=str(other)))
    with pytest.raises(SiteError, match="without passphrase"):
        read_credentials(spec(WEB, client_certificate=str(other)))


def test_paths_are_taken_from_the_folder_of_site_toml(tmp_path: Path) -> None:
    beside = spec(WEB, credentials="pacs.secret", ca_file="/etc/ca.pem").beside(tmp_path)
    assert (beside.credentials, beside.ca_file) == (tmp_path / "pacs.secret", Path("/etc/ca.pem"))


def test_names_that_are_no_uids_are_counted_and_not_shown(tmp_path: Path) -> None:
    wanted = ["1.2.3", "Miller^Anna", "1.2.3/../../etc", "1.2.3/", "../x/1.2"]
    with pytest.raises(DataError, match=r"^4 image\(s\) wanted") as raised:
        fetch_studies(spec(WEB), wanted, tmp_path, silent)
    assert "Miller" not in str(raised.value)
    assert fetch_studies(spec(WEB), wanted[1:], tmp_path, silent, strict=False).studies == 0
    assert not list(tmp_path.iterdir())


def test_without_a_label_table_dates_say_what_to_fetch(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="study_date is missing"):
        fetch_studies(spec(WEB), None, tmp_path, silent)
