"""Skills: the tasks that are generated, so that a model can be raised and examined without any file.

Start with `spelling.py`, the shortest whole one. One file a skill: `arithmetic` through the calculator,
`spelling`, `counting` letters, `identity`, `stdlib` from docstrings; `wording.py` composes the wordings,
`words.py` finds the words. Each has a function `task()` that gives its `Generated` task.
"""
