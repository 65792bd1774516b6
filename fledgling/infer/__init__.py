"""Inference: one engine that generates for chat, the server, evaluations and RL rollouts.

Imports only go down. From the top: `chat_session.py` (a conversation of several turns), `engine.py` (start here:
prompts in, answers out), `scheduler.py` (continuous batching), `request.py` (one request), then `prefix_cache.py`,
`sampling.py`, `tools.py` (calculator and Python), `detokenizer.py` (tokens to text) and `runner.py` (a model over a KV
cache).
"""
