"""Text as it is found, read and prepared: files, public data sets, the embedded corpus, splits, overlap, a process pool.

Start with `document.py` and `sources.py` (what is read), then `pool.py` (hundreds of files become token shards).
"""
