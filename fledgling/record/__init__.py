"""The run directory: the files that a run writes, and the progress line that it shows.

    RUN/recipe.toml  RUN/derived.json (what rules have filled in it)  RUN/environment.json  RUN/plan.json
    RUN/seal.json  RUN/lock (while a process writes)  RUN/forecast.json  RUN/spent.json (of a run with a budget)
    RUN/tokenizer/  RUN/data/   what the stages read: the tokenizer, and token shards of each source
    RUN/init/  RUN/init_adapter/   weights or an adapter that the run was started from
    RUN/requests/  RUN/report.html   requests of a watcher to a run in training; the report
    RUN/<stage>/metrics.jsonl   {"step", "time", "elapsed", "loss", "tokens", "tokens_per_second", "mfu", ...}
    RUN/<stage>/evals.jsonl     {"stage", "step", "name", "value", "low", "high", "n", "baseline", "chance", ...}
    RUN/<stage>/samples.jsonl   {"stage", "step", "prompt", "text"}
    RUN/<stage>/notices.jsonl   {"step", "text"}
    RUN/<stage>/plan.json       what the plan predicted; plan-STEP.json after a change of settings
    RUN/<stage>/exams/          answers of `fledgling eval`, by checkpoint
    RUN/<stage>/done.json       written once, when the stage has finished
    RUN/<stage>/seal.json       hashes of the lines and checkpoints, for `fledgling verify`
    RUN/<stage>/checkpoints/    one directory a checkpoint, complete or absent
    RUN/.<stage>.replaced/      what a start may replace, until its first step; of a restart, its first checkpoint
    RUN/bases/<stage>/          checkpoints of a stage restarted or trained further since, which adapters belong to

JSONL files grow by complete lines only, so the report, a dashboard or `tail -f` can read them at any time. `step`
counts finished optimizer steps: 0 is before the first one.

Start with recorder.py. jsonl.py writes the files, progress_bar.py the line on stderr, loggers.py feeds optional
dashboards, evaluation_log.py appends evaluations and evaluation_names.py has their names, forecast_names.py those of
forecasts. durable.py makes changes of
files that a power cut does not undo, atomic_directory.py makes directories appear complete or not at all, checkpoint.py
stores weights and state in such directories (tensor_file.py writes the tensors, tensor_names.py has names of older
versions), rng_state.py is torch's random state, state_shape.py checks a state before it is used, parent.py names the
checkpoint that a stage began from, writer.py is the thread that writes checkpoints during training. seal.py finds later
changes, budget_end.py when a budget ended, run_lock.py keeps a second process from writing, outside.py keeps other
directories out of a run, user_cache.py keeps measurements of this machine, stage_aside.py says where a stage is kept
while it is restarted, stage_end.py with which step one ended, and run_requests.py passes the requests of a watcher.
Nothing here knows about models."""

from fledgling.record.jsonl import make_write_error, read_jsonl, write_json, write_text
from fledgling.record.recorder import Recorder

__all__ = ["Recorder", "make_write_error", "read_jsonl", "write_json", "write_text"]
