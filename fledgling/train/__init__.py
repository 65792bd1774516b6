"""Training: one loop, and the stages as values for it.

    stage.py           what a stage is; start here
    loop.py            the loop: `queued_step.py` a step whose result is not read yet, `health.py` bad steps,
                       `history.py` and `totals.py` what a stage has run with and read, `peak.py` its speed
    run.py             one stage from the recipe to its last checkpoint: `run_directory.py` locks the run,
                       `stage_origin.py` is what a stage starts from, `train_state.py` what changes while it runs,
                       `hooks.py` what a caller may change, `saver.py` writes checkpoints next to the steps,
                       `replaced_stage.py` keeps what a start may replace, `start_recipe.py` reads its recipe,
                       `same_ranks.py` compares the ranks
    check_recipe.py    all stages, before the first step: `stage_settings.py` settings that do not go together,
                       `check_outside.py` what a recipe names and this machine lacks, `check_values.py` one stage,
                       `resume_check.py` what a run is resumed with, `trial_step.py` one step on `random_batches.py`,
                       `device_step.py` its memory as the planner counts it
    data_preparer.py   text to token shards: `source_sizes.py` counts, `source_positions.py` where each source continues
    stage_rows.py      shards to rows; `read_files.py` keeps the files of DPO and RL as they are
    build_context.py   tokenizer, model and weights: `stage_weights.py` says which, `init_from.py` reads given ones,
                       `copied_source.py` what they were copied from, `kept_bases.py` keeps those of adapters
    context.py         what all builders share; `evals.py` the evaluations, `wrapped_stream.py` streams
    supervised.py      builds pretrain, midtrain and sft
    dpo.py             builds preference tuning, with `preference_data.py`
    rl/                builds reinforcement learning, with `rollout.py` and `critic.py`
    distill/           builds distillation
    stage_horizon.py   a number of steps that a run may change: `pace.py` keeps a deadline, `free_cores.py` follows
                       the cores that other programs leave, `training_speed.py` measures this machine
    derived_values.py  which values of a recipe a rule has filled; `predictions.py` what the planner predicts,
                       `planned_teacher.py` with which teacher

Losses: `loss.py` has cross-entropy and those of RL, `objectives.py` the formulas of preference tuning and
`preference_loss.py` their sums over a batch, `distill/loss.py` the divergences from a teacher.
"""
