"""The model: sizes and parts, the transformer, its cache, and log-probabilities without whole logits.

Start with `config.py` (what a family and a depth mean, no torch), then `transformer.py` and its parts `attention.py`,
`feed_forward.py`, `norm.py`, `positions.py`; `cache.py` is what decoding adds, `logprob.py` is what training adds.
Nothing here knows of optimizers, data or files.
"""
