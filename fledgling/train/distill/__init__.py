"""Distillation: stages whose loss compares the model with a teacher's predictions, through the one loop.

Start with `build.py`, which a text stage calls where [distill] names a teacher. `loss.py` has the losses,
`divergence.py` that of tokens with its gradient, `teacher.py` loads a teacher, `stored.py` keeps its most probable
tokens in shards, `spans.py` aligns two tokenizers by their text. On-policy distillation is an algorithm of `train/rl`.
`texts.py` has a teacher write conversations.
"""
