"""The model: its parts, the transformer, its cache, and log-probabilities without whole logits.

Start with `fledgling.config.ModelConfig` (what a family and a depth mean), then `transformer.py` and its parts.

    attention.py        attention of training and prefill: `fused_attention.py` calls PyTorch's kernel, `window.py` has
                        sliding windows, `cuda_attention.py` packed rows on CUDA, `decode_attention.py` one new token of
                        each row
    query_key.py        rotation and normalization of queries and keys: `rope.py`, `positions.py`
    feed_forward.py     the feed-forward network
    norm.py             norms; `flash_norm.py` folds and defers them
    linear.py           products with a weight; `fp8.py` those of training in fp8
    residual.py         connections past the blocks; `smear.py`, `value_embedding.py` and `scalars.py` are other
                        optional features, `tied_initialization.py` the initial weights of tied embeddings
    adapter.py          low-rank adapters
    cache.py            keys and values for decoding
    logprob.py          losses and evaluations by chunk; `head_chunk.py` has the size of a chunk
    build.py            builds a model on its device

Nothing here depends on optimizers, data or files.
"""
