"""The model: what a depth means, the transformer, its cache, and log-probabilities without whole logits.

Start with `config.py` (sizes, no torch), then `transformer.py`, `attention.py`, `norm.py`; `cache.py` is what
decoding adds, `logprob.py` is what training adds. Nothing here knows of optimizers, data or files.
"""
