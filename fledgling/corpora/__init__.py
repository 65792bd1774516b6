"""Reading and preparing text: from files, public sets and the installed Python to token shards.

Start with `document.py` (what a document is, and which are held out). Where documents come from: `readers.py` (the
user's files, rows of them through `row_files.py`), `embedded.py` (the documentation in the installed Python, extracted
by `python_text.py`) and `public_sets.py` (downloads by name; `core_bundle.py` fetches the CORE tasks). What becomes of
them: `prepare.py` (the tokenizer and token shards of a run), `prepared_data.py` (what was prepared from the same inputs
before), `trained_tokenizer.py` (the files of a tokenizer), `tokenization.py` (sources larger than memory) and
`ngram_overlap.py` (evaluation items that occur in training text).

Imports `fledgling.data` for token shards, never the other way round. No torch.
"""
