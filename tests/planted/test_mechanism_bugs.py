"""The clean step and its twin pass every check of the suite, and no check is there that catches nothing."""

import re

import pytest

from ghostnet.errors import PlanError
from ghostnet.privacy.mechanism import PatientGradients
from tests.planted import mechanism_bugs as bugs
from tests.planted.mechanism_bugs import Clean
from tests.planted.mechanism_checks import CHECKS, Check
from tests.planted.suite import MECHANISM

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("twin", [Clean, bugs.OwnGradients])
def test_the_clean_twins_pass_every_check(twin: type[Clean], check: Check) -> None:
    finding = check(twin())
    assert finding.passed, finding.detail
    assert re.fullmatch(r"[A-Za-z ]+", finding.check)


def test_the_product_refuses_the_coupled_network_before_a_step() -> None:
    with pytest.raises(PlanError, match="row_independent"):
        PatientGradients(bugs.MinibatchStandardDeviation())


def test_every_check_catches_some_bug() -> None:
    found = {check(Clean()).check for check in CHECKS}
    assert found == {planted.caught_by for planted in MECHANISM}
