"""Two small runs with different seeds, made once; `copy` is a copy of the first that a test may tamper with."""

import shutil
import sys

import pytest

from benchmarks.verify import make_run
from fledgling.runtime import device

VERIFY = "fledgling.verify.verify"


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "measure_peak_flops", lambda device, dtype: 1e13)
        return make_run(folder / "a", 1), make_run(folder / "b", 2)


@pytest.fixture
def run(runs):
    return runs[0]


@pytest.fixture
def copy(runs, tmp_path):
    return shutil.copytree(runs[0], tmp_path / "copy")


@pytest.fixture(autouse=True)
def no_peak_measurement(monkeypatch):
    monkeypatch.setattr(device, "measure_peak_flops", lambda device, dtype: 1e13)


@pytest.fixture(autouse=True)
def no_scores(monkeypatch):
    """No exam score is recomputed where a test does not say so: it takes longer than the rest."""
    monkeypatch.setattr(sys.modules[VERIFY], "EVALS", 0)
