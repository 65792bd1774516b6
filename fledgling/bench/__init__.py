"""What `fledgling bench` measures: each figure next to its physical limit, measured in the same run.

`train.py` times the real training step, `memory.py` holds its memory against the planner, `tokenizer.py` times
training and encoding next to other libraries, `sandbox.py` a call of either way to run code, and HumanEval.
`save.py` times checkpoints next to training, `infer.py` answers; `topologies.py` is ring, tree and parameter server to
read, which `comm.py` runs in processes (`ranks.py`, `wire.py`).
"""
