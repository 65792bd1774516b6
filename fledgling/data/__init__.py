"""The data room: from documents and conversations to the micro-batches of one step.

Reading order: `batch.py` (what a step needs), `document.py` and `corpus.py` (where text comes from), `sources.py` and
`public.py` (text of the user's, public sets by name), `shards.py` (tokens on disk), `pack.py` (rows out of documents),
`stream.py` (which row belongs to which step and rank).
"""
