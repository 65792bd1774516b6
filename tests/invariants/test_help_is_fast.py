"""`--help`, `plan` and `config` answer at once: they import no torch, and nothing else that is slow."""

import subprocess
import sys

import pytest

SLOW = ("torch", "numpy", "tokenizers", "transformers", "pyarrow", "matplotlib", "huggingface_hub", "jinja2")


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["plan", "d20-8xh100"],
        ["plan", "--depth", "20", "--json"],
        ["config", "list"],
        ["train", "--help"],
    ],
    ids=" ".join,
)
def test_nothing_slow_is_imported(words):
    script = (
        "import sys; from fledgling.cli import main; code = main(sys.argv[1:]); "
        f"print([name for name in {SLOW!r} if name in sys.modules], file=sys.stderr); sys.exit(code)"
    )
    result = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stderr.strip() == "[]"


def test_importing_the_package_imports_nothing():
    script = "import sys; before = set(sys.modules); import fledgling; print(set(sys.modules) - before)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert result.stdout.strip() == "{'fledgling'}"
