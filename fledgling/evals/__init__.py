"""Evaluation: measurements of a model with their uncertainty.

Start with `measurement.py` (a value and its interval), then `bpb.py` (bits per byte on held-out text), `likelihood.py`
(log-probabilities of given continuations) and what uses it: `core.py` (22 tasks of base models), `chat.py` (exams of
chat tasks: letters by likelihood, the rest by generation) and `harness.py` (lm-evaluation-harness). `passk.py`
estimates pass@k, `session.py` evaluates a checkpoint so that a stopped evaluation resumes. CORE's metric is in
`core_results.py`, its logs in `core_log.py`, the comparison of two logs in `core_compare.py`. Nothing here knows how a
model was trained.
"""
