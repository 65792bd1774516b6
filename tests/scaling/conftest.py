"""A synthetic sweep and its analysis, shared by the tests of this package."""

import pytest

from fledgling.record import write_json
from fledgling.scaling.analysis import analyze_sweep
from fledgling.scaling.results import load_sweep

from .synthetic_sweep import make_run, make_sweep


@pytest.fixture(scope="session")
def sweep_dir(tmp_path_factory):
    """Twelve runs of four sizes and three budgets, and one beyond them with its prediction."""
    out = make_sweep(tmp_path_factory.mktemp("sweeps") / "made-up")
    run = make_run(out / "check/d3-1.6e14", 3, 1.6e14)
    prediction = {"bits_per_byte": {"value": 1.5, "low": 1.48, "high": 1.52}, "optimum": {"N": {"value": 2e6}}}
    write_json(run / "prediction.json", prediction)
    return out


@pytest.fixture(scope="session")
def analysis(sweep_dir):
    return analyze_sweep(load_sweep(sweep_dir))
