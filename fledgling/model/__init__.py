"""The model: its parts, the transformer, its cache, and log-probabilities without whole logits.

Start with `fledgling.config.ModelConfig` (what a family and a depth mean), then `transformer.py` and its parts
`attention.py`, `feed_forward.py`, `norm.py`, `positions.py`; `cache.py` is for decoding, `logprob.py` for losses and
evaluations. Nothing here depends on optimizers, data or files.
"""
