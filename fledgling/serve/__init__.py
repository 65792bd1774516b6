"""The server: a trained model behind an OpenAI-compatible HTTP API, and a page for conversations.

worker.py        one thread that owns the engine and generates for many requests in one batch; start here
service.py       the served model and its limits; `services.py` loads the models of a server
schemas.py       request bodies: `request_body.py` receives them, `json_body.py` parses them, `extra_fields.py` and
                 `field_errors.py` say what is wrong, `constraints.py` is the form that an answer must have
chat.py          /v1/chat/completions: `responses.py` has the bodies of answers, `tool_calls.py` calls in them
completion.py    /v1/completions
embeddings.py    /v1/embeddings: `tasks.py` computes them between the steps of answers
*_api.py         the APIs of OpenAI's Responses, Anthropic's Messages, Ollama, and the tools of MCP servers;
                 `other_settings.py` rejects settings that two of them lack, `ollama_models.py` has Ollama's lists and
                 vectors
app.py           routes, limits, streaming: `middleware.py` controls access, `errors.py` has the bodies of errors
metrics.py       /metrics; `openapi.py` describes the server
page_files.py    the static page, which is in page/; `examples.py` has its first questions
server.py        uvicorn around an application, with the limits of `connections.py`
"""
