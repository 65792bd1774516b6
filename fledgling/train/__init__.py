"""Training: one loop, and the values that make four stages of it.

Start with `stage.py` (what a stage is), `loop.py` (the loop) and `loss.py`; then `prepare.py` (text to token shards),
`supervised.py` (pretrain, midtrain, sft), `rollout.py` and `rl.py`, `setup.py` (device, dtype, compiler),
`saving.py` (checkpoints beside the steps), and `run.py`, which puts one stage together and runs it. The files of a
checkpoint are `fledgling.record.checkpoint`'s.
"""
