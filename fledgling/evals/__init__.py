"""Evaluation: what a model is worth, as numbers with their uncertainty.

Start with `measurement.py` (a figure and its interval), then `bpb.py` (bits per byte on held-out text), `chat.py`
(tasks answered by generation) and `samples.py`. Nothing here knows how a model was trained.
"""
