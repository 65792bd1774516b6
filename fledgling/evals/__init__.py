"""Evaluation: what a model is worth, as numbers with their uncertainty.

Start with `measurement.py` (a figure and its interval), then `bpb.py` (bits per byte on held-out text),
`likelihood.py` (how likely a model finds given continuations) and what asks it: `core.py` (22 tasks of base models),
`chat.py` (letters; the rest by generation) and `harness.py` (lm-evaluation-harness). `logged.py` replays and compares,
`passk.py` counts, `samples.py` shows. Nothing here knows how a model was trained.
"""
