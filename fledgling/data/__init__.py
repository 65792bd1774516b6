"""From token shards to the micro-batches of one step.

Reading order: `batch.py` (what a step needs), `shards.py` (tokens on disk), `packing.py` (rows from documents),
`mixture.py` (which source a row comes from), `stream.py` (which rows a rank reads in a step) and `prefetch.py` (the
thread that builds them). `batch_warmup.py` lets the first steps read less, `multi_token_prediction.py` gives a position
several targets. Where the documents come from: `fledgling.corpora`.
"""
