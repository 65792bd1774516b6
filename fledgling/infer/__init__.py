"""Inference: prompts in, answers out, for chat, evaluations, serving and reinforcement learning alike.

Start with `engine.py` (what to call), then `batch.py` (what happens in a step), `ticket.py` (one request), `prefix.py`
(what need not be read again), `lookahead.py` (guesses), `sample.py` (how a token is drawn), `tools.py` (the calculator
and the python tool), `stream.py` (tokens to text) and `session.py` (a conversation that remembers).
"""
