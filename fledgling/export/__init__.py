"""What leaves the house and what comes in: Hugging Face directories and GGUF files, for all families.

Start with `layout.py`, the one table of names and shapes that export and import both read; then `hugging_face.py`
(write a directory), `read.py` (read one that somebody else may have written), `gguf.py`, `template.py` (the chat layout
in Jinja), `card.py`, and `parity.py`, which every export ends with. Nothing here trains, and no pickle is ever read.
"""
