"""The usefulness benchmark: rows are valid plans, and a comparison differs in what it says and keeps the budget."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from benchmarks import usefulness
from ghostnet.accounting.plan_cost import claim, resolve
from ghostnet.plan import plan_from_dict

ROWS = usefulness.read_rows()


@pytest.mark.parametrize("name", ROWS)
def test_every_row_is_a_plan_within_its_budget(name: str) -> None:
    plan = resolve(plan_from_dict(usefulness.row_plan(ROWS[name], 0)))
    assert claim(plan).epsilon_pld <= plan.privacy.epsilon


@pytest.mark.parametrize("name", [name for name in ROWS if name.endswith("-warm")])
def test_a_warm_twin_spends_no_more_than_the_row_it_is_compared_with_and_nearly_as_much(name: str) -> None:
    twin, row = (
        claim(resolve(plan_from_dict(usefulness.row_plan(ROWS[n], 0)))).epsilon_pld
        for n in (name, name.removesuffix("-warm"))
    )
    assert 0.95 * row <= twin <= row + 0.02


def test_the_seed_is_in_the_plan_and_changes_nothing_else() -> None:
    row = next(iter(ROWS.values()))
    first, second = (usefulness.row_plan(row, seed) for seed in (0, 1))
    assert {key for key in first if first[key] != second[key]} == {"seed"}


def write_result(folder: Path, seed: int, row: usefulness.Row, **result: object) -> None:
    folder.mkdir(parents=True)
    (folder / usefulness.SETTINGS).write_text(json.dumps(usefulness.settings(row, seed)))
    (folder / "result.json").write_text(json.dumps({"seed": seed, "wall_s": 60.0, "epsilon_pld": 1.0, **result}))


def test_the_table_shows_mean_and_spread_of_what_is_done_and_a_done_seed_is_not_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, row = next(iter(ROWS.items()))
    for seed, accuracy in enumerate((0.90, 0.92, 0.94)):
        folder = tmp_path / name / str(seed)
        write_result(folder, seed, row, accuracy_exact=accuracy, **({"recall": 0.5} if seed else {}))
        usefulness.run_row(row, folder, seed, Path("nowhere"))
    assert capsys.readouterr().err == ""
    done = usefulness.collect(ROWS, tmp_path)
    assert [entry["row"] for entry in done] == [name]
    assert done[0]["accuracy_exact"] == pytest.approx({"mean": 0.92, "seeds": 3, "spread": 0.02})
    assert "| 0.920 ± 0.020 |" in usefulness.table(done)
    assert "| - / 0.500 (of 2) |" in usefulness.table(done)


def test_a_run_with_other_settings_is_neither_shown_nor_gone_on_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, row = next(iter(ROWS.items()))
    write_result(tmp_path / name / "0", 0, row, accuracy_exact=0.9)
    for changed in (
        dataclasses.replace(row, change={**row.change, "training.ema": 0.5}),
        dataclasses.replace(row, sites=row.sites + 1),
        dataclasses.replace(row, data="other.npz"),
    ):
        assert usefulness.collect({name: changed}, tmp_path) == []
        assert f"{name}/0: left out" in capsys.readouterr().err
        with pytest.raises(SystemExit, match="other settings"):
            usefulness.run_row(changed, tmp_path / name / "0", 0, Path("nowhere"))
    (tmp_path / name / "0" / usefulness.SETTINGS).write_text("{")  # the disk was full
    assert usefulness.collect({name: row}, tmp_path) == []


def test_figures_that_were_measured_again_are_marked(tmp_path: Path) -> None:
    name, row = next(iter(ROWS.items()))
    write_result(tmp_path / name / "0", 0, row, accuracy_exact=0.9)
    assert "measured again" not in usefulness.table(usefulness.collect(ROWS, tmp_path))
    write_result(tmp_path / name / "1", 1, row, accuracy_exact=0.9, measured_again=True)
    assert "| 2, measured again |" in usefulness.table(usefulness.collect(ROWS, tmp_path))


def test_classes_are_shown_one_by_one_and_several_classes_by_their_mean_auc(tmp_path: Path) -> None:
    figures = {"macro_auc_exact": 0.71, "macro_auc_real": 0.85, "accuracy_exact": 0.5}
    of_mel = {"auc_exact of mel": 0.66, "recall_exact of mel": 0.4, "auc_real of mel": 0.8, "recall_real of mel": 0.6}
    write_result(tmp_path / "skin" / "0", 0, ROWS["skin"], **figures, **of_mel)
    assert "| 0.710 | 0.500 | 0.850 / - |" in usefulness.table(usefulness.collect(ROWS, tmp_path))
    assert "| mel | 0.660 | 0.400 | 0.800 | 0.600 |" in usefulness.class_table("skin", ROWS["skin"], tmp_path)
