"""The report: every fact on one offline page, nothing from the facts run as code, JSON beside it."""

from __future__ import annotations

import base64
import html.parser
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ghostnet.models import build_generator
from ghostnet.plan import FederationSpec, ImageSpec, ModelSpec, Plan, PrivacySpec
from ghostnet.plan.unit import unit_facts
from ghostnet.report.html import ReportFigures, draw_figures, render_page, write_report
from ghostnet.sampler.sampler import Sampler
from ghostnet.sampler.write import write_sampler
from ghostnet.utility.classification import figures

PLAN = Plan(
    name="small chest",
    image=ImageSpec(size=28, labels=("normal", "lesion"), label_prior=(0.5, 0.5), mask_channels=1),
    model=ModelSpec(generator_width=8, latent=16),
    privacy=PrivacySpec(epsilon=4.0, delta=1e-5, sampling_rate=0.1, steps=10, noise_multiplier=1.1),
    federation=FederationSpec(rounds=1, patients=100, hospitals_per_patient=2),
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # the networks are tiny; more threads only wait for each other


@pytest.fixture
def report() -> dict[str, Any]:
    counts = torch.tensor([80.0, 40, 10, 2, 5, 12, 35, 90])
    sites = [
        {"name": n, "epsilon_pld": 3.9871, "epsilon_rdp": 4.21, "ledger_head": n[0] * 64} for n in ("north", "south")
    ]
    return {
        "plan": {**PLAN.to_dict(), "hash": PLAN.hash()},
        "run_id": "run-1",
        "privacy": {
            "epsilon": 3.9871,
            "delta": 1e-5,
            **unit_facts("patient"),
            "epsilon_rdp": 4.21,
            "epsilon_pld": 3.9871,
            "epsilon_pld_all_hospitals": 7.4,
            "sites": sites,
            "not_covered": ["a patient held by more than 2 hospitals"],
        },
        "utility": {"classification": figures(counts, 2, 4, 4.2, labels=("normal", "lesion"))},
        "fidelity": {},
        "timing": {
            "rounds": [
                {"round": 0, "phase": "warm start", "wall_s": 10.0, "slowest_client_s": 9.0},
                {"round": 1, "phase": "train", "wall_s": 30.0, "slowest_client_s": 29.0},
            ],
            "total_s": 75.0,
        },
        "sites": [{"name": "north", "answered": True}, {"name": "south", "answered": True}],
    }


@pytest.fixture
def pictures(tmp_path: Path) -> ReportFigures:
    write_sampler(tmp_path / "sampler", build_generator(PLAN.networks), PLAN)
    return draw_figures(Sampler.load(tmp_path / "sampler"), per_label=4)


class Page(html.parser.HTMLParser):
    """Text, tags and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words, self.tags, self.links = "", [], []  # type: ignore[var-annotated]
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_shows_the_guarantee_with_unit_adjacency_and_both_bounds(
    report: dict[str, Any], pictures: ReportFigures
) -> None:
    words = " ".join(Page(render_page(report, pictures)).words.split())
    for fact in ("3.9871", "1e-5", "patient", "add/remove one patient", "PLD", "RDP", "4.2100", "n" * 64, "s" * 64):
        assert fact in words
    assert "a patient held by more than 2 hospitals" in words
    assert "up to 2 hospitals, the bound over all of them together is ε = 7.4000" in words
    assert PLAN.hash() in words
    assert "ghostnet verify" in words


def test_a_printed_epsilon_is_never_below_the_real_one(report: dict[str, Any], pictures: ReportFigures) -> None:
    report["privacy"]["epsilon"] = 2.00001
    assert "2.0001" in render_page(report, pictures)


def test_an_infinite_epsilon_is_shown_as_unbounded(tmp_path: Path, report: dict[str, Any]) -> None:
    report["privacy"]["epsilon"] = math.inf
    page, facts = write_report(tmp_path, report, ReportFigures())
    assert "unbounded" in Page(page.read_text()).words
    assert json.loads(facts.read_text())["privacy"]["epsilon"] is None


def test_the_page_loads_nothing_and_runs_nothing(report: dict[str, Any], pictures: ReportFigures) -> None:
    text = render_page(report, pictures)
    page = Page(text)
    assert page.links
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not {"script", "iframe", "object", "link"} & set(page.tags)
    assert not re.search(r"url\(|@import|https?://", text)


def test_facts_are_escaped(report: dict[str, Any], pictures: ReportFigures) -> None:
    attack = "<script>alert(1)</script>"
    report["plan"]["name"] = attack
    report["privacy"]["sites"][0]["name"] = attack
    report["sites"][0]["name"] = attack
    hostile = ReportFigures(samples={f'"><img src=x onerror={attack}>': np.zeros((1, 4, 4), np.uint8)})
    page = Page(render_page(report, hostile))
    assert "script" not in page.tags
    assert all(link.startswith("data:") for link in page.links)
    assert attack in page.words


def test_utility_stands_beside_its_chance_line_and_interval(report: dict[str, Any], pictures: ReportFigures) -> None:
    found = report["utility"]["classification"]
    words = Page(render_page(report, pictures)).words
    for number in (found["value"], *found["interval"], 0.5):
        assert f"{number:.3f}" in words
    assert "chance" in words
    assert "trained on the real images" not in words
    found["simulation"] = {"auc_exact": 0.81, "auc_real": 0.93}
    words = Page(render_page(report, pictures)).words
    assert "trained on the real images" in words
    assert "0.930" in words
    assert "measured again" not in words
    found["simulation_again"] = True
    assert "measured again" in Page(render_page(report, pictures)).words


def test_each_label_has_its_row_of_images_and_masks(report: dict[str, Any], pictures: ReportFigures) -> None:
    alts = re.findall(r'alt="(Synthetic|Masks): (\w+)"', render_page(report, pictures))
    assert alts == [("Synthetic", "normal"), ("Masks", "normal"), ("Synthetic", "lesion"), ("Masks", "lesion")]


def test_every_picture_in_the_page_is_a_whole_png(report: dict[str, Any], pictures: ReportFigures) -> None:
    links = Page(render_page(report, pictures)).links
    assert len(links) == 6  # two labels with masks, two charts
    for link in links:
        Image.open(io.BytesIO(base64.b64decode(link.partition(",")[2]))).load()


def test_timing_gives_the_overhead_beyond_the_slowest_hospital(report: dict[str, Any], pictures: ReportFigures) -> None:
    words = Page(render_page(report, pictures)).words
    assert "10.0%" in words  # 1 of 10 seconds in round 0
    assert "49.3%" in words  # 37 of 75 seconds in all
    assert "1 min 15 s" in words


def test_the_json_file_holds_the_same_facts(tmp_path: Path, report: dict[str, Any], pictures: ReportFigures) -> None:
    report["timing"]["total_s"] = np.float32(75.0)
    page, facts = write_report(tmp_path, report, pictures)
    assert json.loads(facts.read_text())["utility"] == json.loads(json.dumps(report["utility"]))
    assert json.loads(facts.read_text())["timing"]["total_s"] == 75.0
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["report.html", "report.json"]
    assert page.name == "report.html"


@pytest.mark.parametrize("missing", ["utility", "fidelity", "timing", "sites"])
def test_a_part_that_was_not_run_is_left_out(report: dict[str, Any], missing: str) -> None:
    del report[missing]
    text = render_page(report, ReportFigures())
    assert "What each patient is guaranteed" in text
    if missing != "sites":
        assert f'id="{missing}"' not in text


def test_a_figure_below_the_noise_is_called_unknown(report: dict[str, Any], pictures: ReportFigures) -> None:
    report["utility"]["classification"] = figures(torch.zeros(8), 2, 4, 6.0)
    assert "Too few test patients for the noise" in Page(render_page(report, pictures)).words


def test_many_classes_are_reported_by_accuracy(report: dict[str, Any], pictures: ReportFigures) -> None:
    table = torch.tensor([[300.0, 10, 5], [20, 250, 8], [1, 0, 2]]).reshape(-1)
    report["utility"]["classification"] = figures(table, 3, 10, 3.0, labels=("a", "b", "rare"))
    words = Page(render_page(report, pictures)).words
    assert "0.926" in words
    assert "area under" not in words


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        ([0.88, 0.97], "works: far above chance"),
        ([0.55, 0.97], "works: above chance"),
        ([0.4, 0.9], "not shown to be better than chance"),
        ([0.1, 0.5], "does not work"),
    ],
)
def test_the_verdict_is_by_the_interval_and_never_by_the_value(
    report: dict[str, Any], interval: list[float], said: str
) -> None:
    report["utility"]["classification"] |= {"value": 0.9, "interval": interval, "informative": True}
    assert f"Classification: {said}" in Page(render_page(report, ReportFigures())).words


def test_counts_that_are_mostly_noise_get_no_verdict(report: dict[str, Any]) -> None:
    report["utility"]["classification"] |= {"value": 0.9, "interval": [0.9, 1.0], "informative": False}
    words = Page(render_page(report, ReportFigures())).words
    assert "cannot be told: too few test patients" in words
    assert "works:" not in words


def test_a_warm_start_alone_shows_the_noise_that_ran_and_no_zero_steps(report: dict[str, Any]) -> None:
    tables = report["plan"]
    tables["privacy"] |= {"steps": 0, "noise_multiplier": 0.0}
    tables["federation"]["rounds"] = 0
    tables["warm_start"]["noise_multiplier"] = 0.75
    words = " ".join(Page(render_page(report, ReportFigures())).words.split())
    assert "noise σ of the warm start0.75" in words
    assert "none: the warm start alone" in words
    assert "sampling rate" not in words


def test_who_was_left_out_is_on_the_page_with_the_reason(report: dict[str, Any]) -> None:
    report["federation"] = {"left_out": ["north: P04: <b>too many rounds</b>"]}
    words = Page(render_page(report, ReportFigures())).words
    assert "Left out" in words
    assert "north: P04: <b>too many rounds</b>" in words


def test_many_exact_figures_are_one_table_of_synthetic_beside_real(report: dict[str, Any]) -> None:
    labels = [f"finding {i}" for i in range(15)]
    exact = {f"auc_{kind} of {label}": 0.5 for label in labels for kind in ("exact", "real")}
    report["utility"]["classification"]["simulation"] = exact | {"auc_exact of finding 3": 0.625}
    text = render_page(report, ReportFigures())
    assert text.count('<div class="simulated">') == 0
    assert re.search(r"auc of finding 3</td><td class=\"num\">0.625</td><td class=\"num\">0.500<", text)


def test_all_time_that_passed_is_told_by_whose_it_was(report: dict[str, Any]) -> None:
    report["timing"]["server"] = [{"work": "fit the warm start", "wall_s": 20.0}]
    words = Page(render_page(report, ReportFigures())).words
    assert "1 min 15 s" in words
    assert "fit the warm start" in words
    assert "messages and waiting 17.0 s (22.7%)" in words
