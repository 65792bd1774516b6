"""Training: one loop, and the values that make four stages of it.

Start with `stage.py` (what a stage is), `loop.py` (the loop) and `loss.py`; then `prepare.py` (text to token shards),
`supervised.py` (pretrain, midtrain, sft), `rollout.py` and `rl.py`, `setup.py` (device, dtype, compiler),
`run.py`, which puts one stage together and runs it. Checkpoints are written by `fledgling.record.checkpoint`.
"""
