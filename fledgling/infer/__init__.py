"""Inference: one engine that generates for chat, the server, evaluations and RL rollouts.

Imports only go down. From the top:

    chat_session.py    a conversation of several turns
    adapters.py        several adapters over one set of weights
    engine.py          prompts in, answers out; start here
    pipeline.py        decoding with tokens that are read one step late
    scheduler.py       continuous batching
    request.py         one request
    prefix_cache.py    cached prefixes of prompts
    sampling.py        sampling on the host; `device_sampling.py` on the device
    grammar.py         constraints on an answer; `json_schema.py` writes a schema in keywords that the library knows,
                       `json_keys.py` keeps keys from occurring twice, `grammar_size.py` bounds what is compiled
    tools.py           calculator and Python; `mcp_tools.py` has those of MCP servers
    detokenizer.py     tokens to text
    runner.py          a model over a KV cache
    device_decoder.py  a decoding step that stays on the device; `step_graphs.py` captures it
"""
