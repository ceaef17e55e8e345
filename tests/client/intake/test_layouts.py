"""Label tables and box files: every layout read into the same lines, findings into labels by the stated rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from client.config import LabelSpec
from client.intake.labels.boxes import NamedBox, parse_boxes, read_boxes
from client.intake.labels.findings import check_rules, plan_label
from client.intake.labels.layouts import CHEXPERT_FINDINGS, NIH_FINDINGS, ImageLine, Wanted, read_layout
from client.intake.labels.pairing import pair
from client.quarantine import Code
from ghostnet.errors import DataError, SiteError
from tests.client.intake.picture_files import PLANTED, write_table

LABELS = ("normal", "pneumonia", "mass")
RULES = LabelSpec(map={"No Finding": "normal", "Effusion": "pneumonia", "Pneumonia": "pneumonia", "Mass": "mass"})
WANTED = Wanted(labels=LABELS, findings={*LABELS, *RULES.map}, patients=True)


def lines(folder: Path, layout: Any, *rows: tuple[object, ...], strict: bool = True) -> list[ImageLine]:
    return read_layout(write_table(folder / "labels.csv", rows), layout, WANTED, strict=strict)


def error(folder: Path, layout: Any, *rows: tuple[object, ...]) -> str:
    with pytest.raises((DataError, SiteError)) as caught:
        lines(folder, layout, *rows)
    assert "\n" not in str(caught.value)
    assert PLANTED not in str(caught.value)
    return str(caught.value)


# --- Findings to labels


@pytest.mark.parametrize(
    ("present", "uncertain", "changes", "expected"),
    [
        (["No Finding"], [], {}, 0),
        (["Effusion", "Pneumonia"], [], {}, 1),
        (["Effusion", "Hernia"], [], {}, 1),
        (["mass"], [], {}, 2),
        (["Mass", "Effusion"], [], {}, Code.SEVERAL_LABELS),
        (["Mass", "Effusion"], [], {"several": "first"}, 1),
        (["Mass"], ["Effusion"], {}, 2),
        ([], ["Effusion"], {}, Code.UNCERTAIN_LABEL),
        (["Hernia"], ["Effusion"], {}, Code.UNCERTAIN_LABEL),
        ([], ["Effusion"], {"uncertain": "pneumonia"}, 1),
        ([], ["Hernia"], {"uncertain": "pneumonia"}, Code.NO_LABEL),
        (["Hernia"], [], {}, Code.NO_LABEL),
        (["Hernia"], [], {"missing": "normal"}, 0),
        ([], [], {"missing": "normal"}, 0),
        (["mass"], [], {"map": {"mass": "drop"}}, Code.NO_LABEL),
    ],
)
def test_the_rules_decide_as_they_say(present: list, uncertain: list, changes: dict, expected: int | Code) -> None:
    rules = LabelSpec(**({"map": RULES.map} | changes))
    assert plan_label(present, uncertain, rules, LABELS) == expected


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"map": {"Mass": "tumour"}}, "'tumour' is no label of the plan"),
        ({"map": {"Masss": "mass"}}, "'Masss', no finding of this layout"),
        ({"map": {"Mass": "drop"}}, "no finding of this layout stands for a label"),
        ({"missing": "healthy"}, "[labels].missing = 'healthy'"),
        ({"uncertain": "healthy"}, "[labels].uncertain = 'healthy'"),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(changes: dict, said: str) -> None:
    with pytest.raises(SiteError) as caught:
        check_rules(LabelSpec(**({"map": RULES.map} | changes)), LABELS, findings=NIH_FINDINGS, source="site.toml")
    assert said in str(caught.value)


# --- Tables


def test_a_plain_table_gives_every_column(tmp_path: Path) -> None:
    header = ("image", "patient", "label", "mask", "box", "comment")
    row = ("a\\b.png", "P1", "Effusion", "m\\b.png", "1 2 3.5 4; 0 0 9 9", "x")
    (line,) = lines(tmp_path, "plain", header, row)
    assert (line.image, line.patient, line.present, line.mask) == ("a/b.png", "P1", ("Effusion",), "m/b.png")
    assert line.boxes == ((1, 2, 3.5, 4), (0, 0, 9, 9))
    assert line.sound
    assert PLANTED not in repr(ImageLine(image=PLANTED, patient=PLANTED, mask=PLANTED))


def test_the_nih_table_is_read_as_it_is_published(tmp_path: Path) -> None:
    # The header of the 2017 file ends in a comma, and its bracketed names hold one each.
    (tmp_path / "labels.csv").write_text(
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
        "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],\n"
        "00000001_000.png,Cardiomegaly|Emphysema,0,1,058Y,M,PA,2682,2749,0.143,0.143,\n"
        "00000002_000.png,No Finding,0,2,081Y,M,PA,2500,2048,0.171,0.171,\n"
    )
    first, second = read_layout(tmp_path / "labels.csv", "nih", WANTED)
    assert (first.image, first.patient, first.present) == ("00000001_000.png", "1", ("Cardiomegaly", "Emphysema"))
    assert first.boxes is None
    assert (second.patient, second.present, second.boxes) == ("2", ("No Finding",), ())


def test_the_chexpert_table_knows_present_uncertain_and_absent(tmp_path: Path) -> None:
    header = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT_FINDINGS)
    marks = dict.fromkeys(CHEXPERT_FINDINGS, "") | {"Pneumonia": "1.0", "Edema": "-1.0", "Fracture": "0.0"}
    path = "CheXpert-v1.0-small/train/patient00007/study1/view1_frontal.jpg"
    (line,) = lines(tmp_path, "chexpert", header, (path, "Female", "68", "Frontal", "AP", *marks.values()))
    assert (line.image, line.patient) == (path, "patient00007")
    assert (line.present, line.uncertain) == (("Pneumonia",), ("Edema",))


@pytest.mark.parametrize(
    ("layout", "rows", "said"),
    [
        ("plain", [("image", "label"), ("a", "mass")], "no column patient"),
        ("plain", [("image", "patient"), ("a", "P")], "no column label"),
        ("plain", [("image", "patient", "label", "label"), ("a", "P", "x", "y")], "2 columns label"),
        ("plain", [("image", "patient", "label"), ("", PLANTED, "mass"), ("", "P", "mass")], "2 line(s) without an"),
        ("plain", [("image", "patient", "label"), ("a", "P", PLANTED)], "1 line(s) with a label that the plan"),
        ("plain", [("image", "patient", "label"), ("a", "P", "mass", PLANTED)], "1 line(s) with more cells"),
        ("plain", [("image", "patient", "label", "box"), ("a", "P", "mass", "1 2 3")], "1 line(s) with a box"),
        ("plain", [("image", "patient", "label", "box"), ("a", "P", "mass", "3 0 1 1")], "1 line(s) with a box"),
        ("nih", [("Image Index", "Finding Labels"), ("a", "Mass")], "no column Patient ID"),
        ("nih", [("Image Index", "Finding Labels", "Patient ID"), ("a", f"Mass|{PLANTED}", "1")], "1 line(s) with a"),
        ("chexpert", [("Path", "Pneumonia"), ("a", "1")], "no column No Finding"),
        ("chexpert", [("Path", "Pneumonia", "No Finding"), ("a", "2", "")], "1 line(s) with a finding that is not"),
    ],
)
def test_what_is_missing_or_wrong_is_counted_and_not_quoted(tmp_path: Path, layout: str, rows: list, said: str) -> None:
    assert said in error(tmp_path, layout, *rows)


def test_without_strictness_a_bad_line_spoils_its_own_image_only(tmp_path: Path) -> None:
    rows = [("image", "patient", "label"), ("a", "P", "wrong"), ("", "P", "mass"), ("b", "P", "mass")]
    assert [line.sound for line in lines(tmp_path, "plain", *rows, strict=False)] == [False, True]


@pytest.mark.parametrize(
    "line", ['"a,P,mass,x', '"a"x,P,mass,x', 'a,P,mass,"x', b"a,P,mass,M\xfcller", "a,P,mass,x,y", f"a,P,{PLANTED},x"]
)
def test_a_broken_line_reaches_no_other_and_is_found_by_its_number(tmp_path: Path, line: str | bytes) -> None:
    path = tmp_path / "labels.csv"
    raw = line if isinstance(line, bytes) else line.encode()
    path.write_bytes(b"image,patient,label,comment\nb,P,mass,\n\n" + raw + b'\nc,P,mass,"x, ""y"""\n')
    with pytest.raises(DataError, match="1 line.s. .*[(]line 4[)]"):
        read_layout(path, "plain", WANTED)
    assert [one.image for one in read_layout(path, "plain", WANTED, strict=False) if one.sound] == ["b", "c"]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("said", ["", "sep={}\r\n", '"sep={}"\r\n', "SEP={}\n"])
def test_the_separators_and_encodings_of_office_programs_are_read(
    tmp_path: Path, separator: str, encoding: str, said: str
) -> None:
    rows = [
        "image,patient,label,box",
        'M\u00fcller_1.png,P0,mass,"1 2 3 4; 5 6 7 8"',
        'b.png,"P;1",mass,',
        "c.png,P2,?,",
    ]
    text = said.format(separator) + "\r\n".join(row.replace(",", separator) for row in rows) + "\r\n"
    (tmp_path / "labels.csv").write_bytes(text.encode(encoding))
    first, second, third = read_layout(tmp_path / "labels.csv", "plain", WANTED, strict=False)
    assert (first.image, first.patient, first.present) == ("M\u00fcller_1.png", "P0", ("mass",))
    assert first.boxes == ((1, 2, 3, 4), (5, 6, 7, 8))
    assert (second.image, second.patient, second.sound) == ("b.png", "P;1", True)
    assert (third.sound, third.number) == (False, 4 + bool(said))


def test_a_broken_unit_of_utf16_spoils_its_own_line_only(tmp_path: Path) -> None:
    text = "image,patient,label\na.png,P,mass\nb.png,P,mass\n".encode("utf-16-le")
    broken = text.replace("b.".encode("utf-16-le"), b"\x00\xd8.\0")
    (tmp_path / "labels.csv").write_bytes(b"\xff\xfe" + broken)
    assert [line.sound for line in read_layout(tmp_path / "labels.csv", "plain", WANTED, strict=False)] == [True, False]


def test_a_cell_of_any_length_is_read_past(tmp_path: Path) -> None:
    rows = [("image", "patient", "label", "report"), ("a", "P", "mass", "x" * 300_000), ("b", "P", "mass", "")]
    assert [line.sound for line in lines(tmp_path, "plain", *rows)] == [True, True]


def test_five_line_numbers_are_enough(tmp_path: Path) -> None:
    rows = [("image", "patient", "label"), *[("a", "P", PLANTED)] * 7]
    assert "7 line(s) with" in error(tmp_path, "plain", *rows)
    assert "(line 2, 3, 4, 5, 6, ...)" in error(tmp_path, "plain", *rows)


# --- Lines and files


def paired(found: list[ImageLine], files: list[str], layout: Any = "plain", strict: bool = True) -> list[tuple]:
    pairs = pair(found, files, layout, folder="png", strict=strict).pairs
    return [(known.name, known.line.patient, known.line.sound) for known in pairs]


def test_a_line_may_name_a_folder(tmp_path: Path) -> None:
    found = [ImageLine(image="s1", patient="A"), ImageLine(image="s2/2.dcm", patient="B"), ImageLine(image="s3")]
    result = pair(found, ["s1/1.dcm", "s1/sub/2.dcm", "s2/1.dcm", "s2/2.dcm"], "plain")
    assert [(p.name, p.line.patient, p.inside) for p in result.pairs] == [
        ("s1/1.dcm", "A", "1.dcm"),
        ("s1/sub/2.dcm", "A", "sub/2.dcm"),
        ("s2/2.dcm", "B", ""),
    ]
    assert result.lines_without_file == 1


def test_an_instance_is_found_without_its_suffix() -> None:
    assert paired([ImageLine(image="1.2/3.4")], ["1.2/3.4.dcm", "1.2/3.5.dcm"]) == [("1.2/3.4.dcm", "", True)]
    assert paired([ImageLine(image="1.2")], ["1.2/3.4.dcm", "1.2/3.5.dcm"])[1][0] == "1.2/3.5.dcm"


def test_chexpert_paths_may_begin_above_the_folder() -> None:
    path = "CheXpert-v1.0-small/train/patient00007/study1/view1_frontal.jpg"
    for start in range(3):
        file = "/".join(path.split("/")[start:])
        assert paired([ImageLine(image=path, patient="p")], [file], "chexpert") == [(file, "p", True)]
    assert paired([ImageLine(image=path)], ["study1/view1_frontal.jpg"], "chexpert") == []


def test_nih_images_are_found_by_name_in_any_folder() -> None:
    files = ["images_001/images/00000001_000.png", "images_002/images/00000002_000.png"]
    found = [ImageLine(image="00000002_000.png", patient="2")]
    assert paired(found, files, "nih") == [(files[1], "2", True)]


def test_nih_images_of_one_name_are_told_apart_by_their_folders() -> None:
    files = ["anna/1.png", "berta/1.png", "x/berta/2.png"]
    assert paired([ImageLine(image="anna/1.png", patient="A")], files, "nih") == [("anna/1.png", "A", True)]
    assert paired([ImageLine(image="CXR8/anna/1.png", patient="A")], files, "nih") == [("anna/1.png", "A", True)]
    assert paired([ImageLine(image="berta/2.png", patient="B")], files, "nih") == [("x/berta/2.png", "B", True)]
    assert paired([ImageLine(image="clara/1.png", patient="C")], files, "nih") == []
    bare = [ImageLine(image="1.png", patient="A", number=7)]
    with pytest.raises(DataError, match="1 line.s. with a file name that several images have .line 7."):
        pair(bare, files, "nih")
    assert paired(bare, files, "nih", strict=False) == [("anna/1.png", "A", False), ("berta/1.png", "A", False)]


def test_a_table_that_names_a_file_twice_says_on_which_lines() -> None:
    twice = [ImageLine(image="a.png", patient="A", number=2), ImageLine(image="a.png", patient="A", number=9)]
    with pytest.raises(DataError, match="1 image.s. twice .line 2, 9."):
        pair(twice, ["a.png"], "plain")
    with pytest.raises(DataError, match="two patients .line 2, 5."):
        pair([twice[0], ImageLine(image="a.png", patient="B", number=5)], ["a.png"], "plain")


def test_one_file_of_two_patients_is_refused_or_an_image_of_each() -> None:
    found = [ImageLine(image="a.png", patient="A"), ImageLine(image="a.png", patient="B")]
    with pytest.raises(DataError, match="1 image file.s. to two patients"):
        pair(found, ["a.png"], "plain")
    # B's line changes nothing for A.
    assert paired(found[:1], ["a.png"], strict=False) == [("a.png", "A", True)]
    assert paired(found, ["a.png"], strict=False) == [("a.png", "A", True), ("a.png", "B", True)]


def test_one_file_twice_for_a_patient_is_refused_or_left_out() -> None:
    found = [ImageLine(image="s/a.png", patient="A"), ImageLine(image="s", patient="A")]
    with pytest.raises(DataError, match="1 image.s. twice"):
        pair(found, ["s/a.png", "s/b.png"], "plain")
    assert paired(found, ["s/a.png", "s/b.png"], strict=False) == [("s/a.png", "A", False), ("s/b.png", "A", True)]


def test_a_box_belongs_to_a_file_and_not_to_a_folder() -> None:
    found = [ImageLine(image="s", patient="A", boxes=((0, 0, 1, 1),))]
    with pytest.raises(DataError, match="1 line.s. with a box on a folder"):
        pair(found, ["s/a.png"], "plain")
    assert paired(found, ["s/a.png"], strict=False) == [("s/a.png", "A", False)]


@pytest.mark.parametrize("turned", [False, True], ids=["one first", "the other first"])
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("layout", "own", "others", "own_file", "others_file"),
    [
        ("nih", "1.png", "berta/1.png", "anna/1.png", "berta/1.png"),
        ("nih", "1.png", "CXR8/berta/1.png", "anna/1.png", "berta/1.png"),
        ("nih", "anna/1.png", "1.png", "x/anna/1.png", "1.png"),
        ("nih", "CXR8/anna/1.png", "1.png", "anna/1.png", "1.png"),
        ("plain", "s/1", "s/1.dcm", "s/1", "s/1.dcm"),
        ("plain", "s/1", "s/1.png", "s/1.PNG", "s/1.png"),
        ("plain", "s/1.png", "s/1.PNG", "s/1.png", "s/1.PNG"),
        ("plain", "/data/png/1.png", "1.png", "png/1.png", "1.png"),
    ],
)
def test_a_file_with_the_name_of_another_patients_neither_drops_nor_takes_that_ones_image(
    layout: str, own: str, others: str, own_file: str, others_file: str, strict: bool, turned: bool
) -> None:
    anna, berta = ImageLine(image=own, patient="A", number=2), ImageLine(image=others, patient="B", number=3)
    both, files = [anna, berta], sorted([own_file, others_file])
    alone = paired([anna], [own_file], layout, strict=strict)
    together = paired(both[::-1] if turned else both, files[::-1] if turned else files, layout, strict=strict)
    assert alone == [(own_file, "A", True)]
    assert sorted(together) == sorted([*alone, (others_file, "B", True)])
    # Anna's file is not there: she gets none, and above all not Berta's.
    assert paired(both[::-1] if turned else both, [others_file], layout, strict=strict) == [(others_file, "B", True)]


@pytest.mark.parametrize(
    ("named", "file"),
    [
        ("a/1.PNG", "a/1.png"),
        ("a/1.png", "a/1.PNG"),
        ("a/1", "a/1.png"),
        ("a/1", "a/1.nii.gz"),
        ("png/a/1.png", "a/1.png"),
        ("/data/png/a/1.png", "a/1.png"),
        ("C:/scans/a/1.png", "a/1.png"),
        ("M\u00fcller.png", "Mu\u0308ller.png"),
        ("Mu\u0308ller.png", "M\u00fcller.png"),
    ],
)
def test_a_plain_table_may_name_a_file_in_these_ways(named: str, file: str) -> None:
    assert paired([ImageLine(image=named, patient="A")], [file, "b/1.png"]) == [(file, "A", True)]


@pytest.mark.parametrize("named", ["1.png", "1", "x/1.png", "x/png/1.png", "A/1.png", "a/1.jpg"])
def test_a_plain_table_names_no_file_by_less(named: str) -> None:
    assert paired([ImageLine(image=named, patient="A")], ["a/1.png", "b/1.png"]) == []


def test_a_name_of_two_files_is_refused_or_left_out() -> None:
    found = [ImageLine(image="1", patient="A", number=4)]
    with pytest.raises(DataError, match="that several images have .line 4."):
        pair(found, ["1.jpg", "1.png"], "plain")
    assert [sound for _, _, sound in paired(found, ["1.jpg", "1.png"], strict=False)] == [False, False]


# --- Boxes


def test_a_box_cell_is_understood() -> None:
    assert parse_boxes("1 2 3 4") == ((1.0, 2.0, 3.0, 4.0),)
    assert parse_boxes("1 2 3 4;5 5 6.5 7;") == ((1.0, 2.0, 3.0, 4.0), (5.0, 5.0, 6.5, 7.0))
    assert parse_boxes("none") == ()
    for wrong in ("1 2 3", "1 2 3 x", "1 2 3 nan", "1 2 1 4", "4 2 3 4", "1 2 3 inf", "1e9 0 2e9 1", ";", "1,2,3,4"):
        assert parse_boxes(wrong) is None


COCO: dict[str, Any] = {
    "images": [{"id": 7, "file_name": "a/1.png", "width": 40, "height": 40}, {"id": 8, "file_name": "2.png"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 3, "bbox": [10, 20, 5, 6]},
        {"id": 2, "image_id": 7, "category_id": 9, "bbox": [0.5, 0, 1, 1]},
    ],
    "categories": [{"id": 3, "name": "Mass"}],
}


def test_coco_boxes_are_found_by_image(tmp_path: Path) -> None:
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(COCO))
    assert read_boxes(path) == {
        "a/1.png": (
            NamedBox(finding="Mass", corners=(10, 20, 15, 26)),
            NamedBox(finding="", corners=(0.5, 0, 1.5, 1)),
        ),
        "2.png": (),
    }


@pytest.mark.parametrize("bbox", [[1, 2, 3], [1, 2, 0, 4], [1, 2, -3, 4], [1, 2, float("nan"), 4], "1 2 3 4", None, {}])
def test_a_bad_coco_box_is_counted_or_spoils_its_own_image_only(tmp_path: Path, bbox: object) -> None:
    path = tmp_path / "boxes.json"
    wrong = {"image_id": 8, "bbox": bbox}
    path.write_text(json.dumps(COCO | {"annotations": [*COCO["annotations"], wrong]}))
    with pytest.raises(DataError, match="1 box"):
        read_boxes(path)
    found = read_boxes(path, strict=False)
    assert found["2.png"] is None
    assert len(found["a/1.png"] or ()) == 2


def test_a_coco_number_of_thousands_of_digits_spoils_its_own_image_only(tmp_path: Path) -> None:
    path = tmp_path / "boxes.json"
    for key, value in (("bbox", [1, 2, 3, 0]), ("image_id", 0)):
        wrong = {"image_id": 8, "bbox": [1, 2, 3, 4]} | {key: value}
        text = json.dumps(COCO | {"annotations": [*COCO["annotations"], wrong]})
        path.write_text(text.replace("2, 3, 0]", "2, 3, " + "9" * 5000 + "]").replace(": 0,", ": " + "9" * 5000 + ","))
        with pytest.raises(DataError, match="1 box"):
            read_boxes(path)
        assert len(read_boxes(path, strict=False)["a/1.png"] or ()) == 2


def test_what_is_no_row_of_coco_spoils_nothing_without_strictness(tmp_path: Path) -> None:
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(COCO | {"annotations": [*COCO["annotations"], 7]}))
    with pytest.raises(SiteError, match="no COCO"):
        read_boxes(path)
    assert len(read_boxes(path, strict=False)["a/1.png"] or ()) == 2


@pytest.mark.parametrize("line", ['"b.png,1,2,3,4', '"b.png"x,1,2,3,4', "b.png,1,2,3,4,M\xfcller"])
def test_a_broken_line_of_boxes_reaches_no_other(tmp_path: Path, line: str) -> None:
    path = tmp_path / "boxes.csv"
    path.write_text(f"image,x0,y0,x1,y1,reader\n{line}\na.png,1,2,3,4,x\n", encoding="latin-1")
    with pytest.raises(DataError, match="1 box"):
        read_boxes(path)
    assert read_boxes(path, strict=False)["a.png"] == (NamedBox(finding="", corners=(1, 2, 3, 4)),)


def test_boxes_in_csv_come_as_corners_or_sizes(tmp_path: Path) -> None:
    path = tmp_path / "boxes.csv"
    write_table(path, [("image", "x0", "y0", "x1", "y1"), ("a.png", 1, 2, 3, 4), ("b.png", "", "", "", "")])
    assert read_boxes(path) == {"a.png": (NamedBox(finding="", corners=(1, 2, 3, 4)),), "b.png": ()}
    write_table(path, [("finding", "image", "x", "y", "width", "height"), ("Mass", "a.png", 1, 2, 3, 4)])
    assert read_boxes(path) == {"a.png": (NamedBox(finding="Mass", corners=(1, 2, 4, 6)),)}


def test_the_nih_boxes_are_read_as_they_are_published(tmp_path: Path) -> None:
    path = tmp_path / "BBox_List_2017.csv"
    rows = "00000001_000.png,Infiltrate,225.08,547.02,86.78,79.19,,,\n00000001_000.png,Mass,1,2,3,4\n"
    for header in ("Image Index,Finding Label,Bbox [x,y,w,h],,,", '"Image Index","Finding Label","Bbox [x,y,w,h]"'):
        path.write_text(f"{header}\n{rows}")
        (boxes,) = read_boxes(path).values()
        assert boxes is not None
        assert [box.finding for box in boxes] == ["Infiltration", "Mass"]
        assert boxes[0].corners == pytest.approx((225.08, 547.02, 311.86, 626.21))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("b.json", "[]"),
        ("b.json", "{"),
        ("b.json", '{"images": [1], "annotations": []}'),
        ("b.json", "[" * 100_000),
        ("b.csv", ""),
        ("b.csv", "image,left,top\n"),
        ("b.csv", '"image,x0,y0,x1,y1\na,1,2,3,4\n'),
        ("b.csv", "\x00\xff"),
    ],
)
def test_a_file_that_holds_no_boxes_is_one_line(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="latin-1")
    with pytest.raises(SiteError) as caught:
        read_boxes(tmp_path / name)
    assert "\n" not in str(caught.value)
    with pytest.raises(SiteError, match="cannot be read"):
        read_boxes(tmp_path / "none.csv")
