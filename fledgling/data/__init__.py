"""The data room: from documents and conversations to the micro-batches of one step.

Reading order: `batch.py` (what a step needs), `document.py` and `corpus.py` (where text comes from;
`scan.py` and `prose.py` lift and clean it), `split.py` (what is held out), `sources.py` and `public.py`
(the user's own text, public sets by name), `shards.py` (tokens on disk), `pool.py` (hundreds of files), `pack.py`
(rows out of documents), `mixture.py` and `stream.py` (which row is whose: source, step, rank).
"""
