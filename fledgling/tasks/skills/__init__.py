"""Skills: generated tasks, so that a model can be trained and evaluated without any file.

Start with `spelling.py`, the shortest. Each skill is a module with `make_task()`, which returns its `GeneratedTask`,
and a TOML file of the same name with its prompt templates: `arithmetic` (through the calculator), `spelling`,
`counting` letters, `identity`, `stdlib` (from docstrings), `language` (a made-up one). `templates.py` reads and expands
the templates, `words.py` collects the words.
"""

# The day on which the wordings were last changed so that scores of runs before and after cannot be compared.
WORDINGS = "2026-11-30 4"
