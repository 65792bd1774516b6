"""The environment of a run is collected without torch."""

import json
import subprocess
import sys

from fledgling.runtime.system_environment import collect_environment


def test_the_environment_is_collected_without_torch():
    script = "import sys, json; from fledgling.runtime import system_environment as s; e = s.collect_environment();"
    script += "assert 'torch' not in sys.modules and 'rich' not in sys.modules; print(json.dumps(e))"
    collected = json.loads(subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout)
    assert collected["python"].startswith("3.") and collected["cores"] >= 1 and collected["memory"] > 1e8
    assert set(collected) == set(collect_environment())
