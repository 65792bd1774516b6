"""Watching runs while they train: a page of charts, evaluations, samples, the batch and the machine; and buttons.

Start with `run_watch.py` (what is read of a run; `tail.py` reads a bounded part at a time, `machine.py` the machine),
then `app.py` (routes behind the access checks of `fledgling.serve`). The watcher is a process of its own: it only reads
the files that a run appends to, and asks for something by an empty file that the run takes after its next step
(`record/run_requests.py`). `page/` is the page.
"""
