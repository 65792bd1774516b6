"""Training: one loop, and the stages as values for it.

Start with `stage.py` (what a stage is), `loop.py` (the loop) and `loss.py` (all losses). Then `data_preparer.py` and
`stage_rows.py` (text to token shards to rows), `context.py` and `evals.py` (what all builders share), and the builders:
`supervised.py` (pretrain, midtrain, sft), `dpo.py`, and `rl`, with `rollout.py` and `critic.py`. `saver.py` writes
checkpoints next to the steps, `check_recipe.py` checks all stages before the first step, `health.py` counts bad steps,
`init_from.py` starts from given weights. `stage_origin.py` finds what a stage starts from, `build_context.py` loads
tokenizer, model and weights, `train_state.py` has what a checkpoint restores, `run.py` runs one stage from the recipe
to its last checkpoint, and `hooks.py` has what a caller may change of it.
"""
