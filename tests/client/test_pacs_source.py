"""A site whose images come from a PACS: fetched by its label table, then read like a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from client.cohort import load_cohorts
from client.config import SiteConfig
from ghostnet.errors import SiteError
from tests.client.dicom_files import SECRET, image_spec, write_labels, write_site
from tests.client.test_pacs_hostile import STUDY, Answer, body, file_of, listing, parts, serving, web_server

INSTANCES = {"1.2.3.5": 20, "1.2.3.6": 24, "1.2.3.7": 28}
"""Side of each image, in px: they differ."""

ARCHIVE = serving(body(listing(*INSTANCES)), lambda name: parts(file_of(name, INSTANCES[name])))


def site(folder: Path, url: str) -> SiteConfig:
    data = (
        f'[data]\nkind = "pacs"\nlabels = "labels.csv"\n[pacs]\nprotocol = "dicomweb"\nurl = "{url}"\npatience_s = 0.0'
    )
    return write_site(folder, data=data, more="[cohort]\ntest_fraction = 0.0")


def test_a_label_table_of_studies_is_fetched_and_read_and_not_fetched_again(tmp_path: Path) -> None:
    write_labels(tmp_path, {STUDY: "lesion"})
    with web_server(ARCHIVE) as (url, asked):
        config = site(tmp_path, url)
        first = load_cohorts(config, image_spec(), SECRET)
        assert asked
    assert (first.table.kind, first.table.taken, first.table.patients) == ("pacs", 3, 1)
    assert sorted(path.name for path in (config.state / "pacs" / STUDY).glob("*.dcm")) == [
        f"{x}.dcm" for x in INSTANCES
    ]
    again = load_cohorts(config, image_spec(), SECRET)  # the PACS is gone
    assert (again.table.taken, again.table.from_cache) == (3, 3)


def test_single_instances_may_be_named_each_with_its_label(tmp_path: Path) -> None:
    write_labels(tmp_path, {f"{STUDY}/1.2.3.5": "lesion", f"{STUDY}/1.2.3.7": "normal"})
    with web_server(ARCHIVE) as (url, _):
        table = load_cohorts(site(tmp_path, url), image_spec(), SECRET).table
    assert table.labels == {"lesion": 1, "normal": 1}


def test_without_a_table_the_studies_of_a_period_have_the_label_of_missing_findings(tmp_path: Path) -> None:
    found = json.dumps([{"0020000D": {"vr": "UI", "Value": [STUDY]}}]).encode()

    def archive(path: str) -> Answer:
        return body(found) if path.startswith("/pacs/studies?") and "offset=0" in path else ARCHIVE(path)

    with web_server(archive) as (url, asked):
        data = (
            f'[data]\nkind = "pacs"\n[labels]\nmissing = "normal"\n[pacs]\nprotocol = "dicomweb"\nurl = "{url}"\n'
            'patience_s = 0.0\nstudy_date = "20200101-20201231"'
        )
        config = write_site(tmp_path, data=data, more="[cohort]\ntest_fraction = 0.0")
        strange = config.state / "pacs" / "9.9.9" / "9.9.9.1.dcm"  # of another period, fetched before
        strange.parent.mkdir(parents=True)
        strange.write_bytes(file_of("9.9.9.1"))
        table = load_cohorts(config, image_spec(), SECRET).table
    assert any("StudyDate=20200101-20201231" in path for path in asked)
    assert table.labels == {"normal": 3}
    assert table.quarantined == {"NO_LABEL": 1}


def test_a_pacs_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    write_labels(tmp_path, {STUDY: "lesion"})
    with web_server(ARCHIVE) as (url, _):
        pass
    with pytest.raises(SiteError, match="PACS http") as caught:
        load_cohorts(site(tmp_path, url), image_spec(), SECRET)
    assert "\n" not in str(caught.value)
    assert STUDY not in str(caught.value)
