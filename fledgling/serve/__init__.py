"""The server: a trained model behind an OpenAI-compatible HTTP API, and a page for conversations.

Start with `worker.py` (one thread that owns the engine and generates for many requests in one batch), then
`schemas.py` (request bodies and their validation), `responses.py` (response bodies) and `app.py` (routes, limits,
streaming). `page/` holds the static page.
"""
