"""The run directory: what a run leaves behind, and the line it shows while it works.

    RUN/recipe.toml  RUN/environment.json
    RUN/<stage>/metrics.jsonl   {"step", "time", "elapsed", "loss", "tokens", "tokens_per_second", "mfu", ...}
    RUN/<stage>/evals.jsonl     {"stage", "step", "name", "value", "low", "high", "n", "baseline"}
    RUN/<stage>/samples.jsonl   {"stage", "step", "prompt", "text"}
    RUN/<stage>/notices.jsonl   {"step", "text"}
    RUN/<stage>/done.json       written once, when the stage has finished
    RUN/<stage>/checkpoints/    directories that are whole or do not exist

The one idea: everything that leaves a run is a file that only ever grows by whole lines, so that whoever
reads (the report, a dashboard, `tail -f`) needs no running process and no account. `step` counts finished
updates: 0 is before the first one. Nothing here knows about models, and only checkpoint.py imports torch.

Start with recorder.py; lines.py is the files, progress.py the line on stderr, sinks.py the optional
dashboards, checkpoint.py weights and state, writer.py the thread that writes them beside training.
"""

from fledgling.record.environment import collect_environment
from fledgling.record.jsonl import fsync_path, make_write_error, read_jsonl, write_json, write_text
from fledgling.record.recorder import Recorder

__all__ = [
    "Recorder",
    "collect_environment",
    "fsync_path",
    "make_write_error",
    "read_jsonl",
    "write_json",
    "write_text",
]
