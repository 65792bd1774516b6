"""What steps of a stage ran with: recipe, machine, dtypes, compiler, files, as its newest checkpoint has recorded."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fledgling.config import RunConfig
from fledgling.kernels.native import load_native_library
from fledgling.record import checkpoint, read_jsonl
from fledgling.record.state_shape import SWITCHES
from fledgling.runtime.device import DTYPES, choose_setup, name_dtype, should_compile
from fledgling.runtime.world import World
from fledgling.verify.files import is_usable, list_stage_checkpoints


@dataclass(frozen=True)
class Segment:
    """What the steps of a stage from one on ran with. last: the last of them; None: up to the end."""

    recipe: str | None  # as TOML; None: recipe.toml
    machine: dict[str, Any]
    last: int | None
    dtype: str | None = None  # of training; None: an earlier version's, which was the engine's
    files: dict[str, str] = field(default_factory=dict)  # digests of those that were read as they are
    compiled: bool | None = None  # whether blocks and loss were; None: that is not known
    native: bool | None = None  # whether answers were sampled with native kernels; None: nothing was, or not known


def find_segment(run_dir: Path, stage: str, step: int) -> Segment:
    """Returns what the step after `step` ran with, and up to which one that holds."""
    history: list[dict[str, Any]] = []
    data: dict[str, Any] = {}  # an earlier version's history has no files: the newest checkpoint has those of the end
    for path in list_stage_checkpoints(run_dir, stage)[::-1]:
        if is_usable(path):
            state = checkpoint.read_checkpoint_state(path)
            history = state.get("history") or [{"after_step": 0, "recipe": state["recipe"], "machine": {}}]
            data = state.get("data") or {}
            break
    if not history:
        return Segment(None, {}, None)
    number = max((i for i, entry in enumerate(history) if entry["after_step"] <= step), default=0)
    last = history[number + 1]["after_step"] if number + 1 < len(history) else None
    files = history[number].get("files", {name: facts.get("digest", "") for name, facts in data.items()})
    dtypes = history[number].get("dtypes")
    dtype = next((name for name in DTYPES if isinstance(dtypes, list) and dtypes[:1] == [name]), None)
    compiled, native = (value if isinstance(value := history[number].get(key), bool) else None for key in SWITCHES)
    compiled = _read_whether_compiled(run_dir, stage, step) if compiled is None else compiled
    return Segment(history[number]["recipe"], history[number]["machine"], last, dtype, files, compiled, native)


def _read_whether_compiled(run_dir: Path, stage: str, step: int) -> bool | None:
    """Returns what the notice with which a stage started before `step` says: an earlier version's history does not."""
    lines = [str(line.get("text")) for line in read_jsonl(run_dir / stage / "notices.jsonl") if _is_before(line, step)]
    found = [line for line in lines if line.startswith(f"{stage}: ") and ", peak " in line and "compiled" in line]
    return "not compiled" not in found[-1] if found else None


def _is_before(line: dict[str, Any], step: int) -> bool:
    return isinstance(line.get("step"), int) and line["step"] <= step


def choose_replayed_run(run: RunConfig, segment: Segment) -> RunConfig:
    """Returns the [run] with which the steps of a segment are replayed here: compiled, and in the dtype, as they were.

    Where nothing compiles here they are replayed as they are (`find_other_rounding`). Raises UserError for a device, or
    a package for it, that is not here.
    """
    device = World.start(run.device).device
    if segment.compiled is False or not should_compile("off" if run.compile == "off" else "auto", device):
        run = replace(run, compile="off")
    return replace(run, dtype=choose_replayed_dtype(run, segment))


def find_other_rounding(run: RunConfig, segment: Segment) -> str:
    """Returns why the steps of a segment cannot be replayed bit by bit on their own machine; "" if they can."""
    device, reasons = World.start(run.device).device, []
    if segment.compiled is not False and run.compile != "off" and not should_compile("auto", device):
        was = "trained compiled" if segment.compiled else "whether they were compiled is not recorded"
        reasons.append(f"{was}, and there is no compiler here")
    if segment.native is not None and segment.native != (load_native_library() is not None):
        with_or_without = ("without", "with")
        was, now = with_or_without[segment.native], with_or_without[not segment.native]
        reasons.append(f"sampled {was} native kernels, and {now} them here")
    return "; ".join(reasons)


def choose_replayed_dtype(run: RunConfig, segment: Segment) -> str:
    """Returns the `run.dtype` with which training here computes in the dtype of a segment's steps."""
    setup = choose_setup(run, World.start(run.device))
    trained = segment.dtype or name_dtype(setup.engine_dtype)
    return run.dtype if run.dtype != "auto" or trained == setup.dtype_name else trained
