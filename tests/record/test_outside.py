"""What a command writes by itself is not taken for a run's, nor is another checkpoint taken for it."""

import pytest

from fledgling.config import UserError
from fledgling.record.outside import require_outside_run


def test_a_directory_with_a_newer_checkpoint_is_rejected_since_commands_would_take_that_one(tmp_path):
    require_outside_run(tmp_path / "none", step=4)
    for name in ("step-00000002", "step-00000004", "step-00000009.old"):
        (tmp_path / name).mkdir()
        require_outside_run(tmp_path, step=4)
    (tmp_path / "step-00000007").mkdir()
    require_outside_run(tmp_path)
    with pytest.raises(UserError, match="has step-00000007, which commands would take for this one, step-00000004"):
        require_outside_run(tmp_path, step=4)
