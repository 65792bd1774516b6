"""The server: a trained model behind OpenAI's HTTP API, and a page to talk to it.

Start with `worker.py` (one thread that owns the engine and answers many requests in one batch), then `requests.py`
(what a body may say, checked before anything else), `answers.py` (what goes back) and `app.py` (routes, limits, keys).
`page/` holds the static page. Nothing below this room knows that it exists.
"""
