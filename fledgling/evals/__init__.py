"""Evaluation: measurements of a model with their uncertainty.

    measurement.py   a value and its interval; start here
    intervals.py     intervals over what is independent
    bpb.py           bits per byte on held-out text, and perplexity
    likelihood.py    log-probabilities of given continuations
    core.py          CORE, the 22 tasks of base models: `core_results.py` has its metric, `core_log.py` its logs,
                     `core_compare.py` compares two logs
    harness.py       tasks of lm-evaluation-harness
    needle.py        a number that was stated far before
    chat.py          exams of chat tasks: letters by likelihood, the rest by generation
    episodes.py      answers that are episodes of an environment
    passk.py         pass@k
    session.py       evaluates a checkpoint so that a stopped evaluation resumes; `saved_answers.py`: lines of its files
    exams.py         exams of a session by names, and what is recorded of them
    quality.py       one measurement for two versions of a model
    quantization.py  a checkpoint in 8 or 4 bits, and what that costs
    samples.py       replies to read, not to score
    sparsity.py      zeros in activations

Nothing here knows how a model was trained.
"""
