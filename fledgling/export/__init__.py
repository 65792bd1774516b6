"""Exports to and imports from other formats, for all families: Hugging Face directories, GGUF, MLX, ONNX, hubs;
a page that holds the model.

Start with `hf_mapping.py`, the one table of names and shapes that export and import both read.

    hf_tensor.py                      part of that table: how a tensor is stored
    hf_rope.py, hf_layers.py          RoPE, windows and layers without positions in config.json
    open_classes.py, own_class.py     families as classes of transformers; `modeling_fledgling.py` for all others
    write_hf.py, read_hf.py           a directory, written and read from any source (`untrusted.py`)
    read_layout.py                    the layout of its conversations; `chat_template.py` writes ours in Jinja
    compressed_tensors.py             quantized matrices of a directory
    import_hf.py                      a checkpoint of a directory or a GGUF file
    model_card.py, card_origin.py     the card of an export; `push.py` uploads it
    gguf.py, read_gguf.py             GGUF, written and read: `gguf_architectures.py` first, then the other gguf_*.py
    ggml_quantize.py, importance.py   types that ggml quantizes itself, weighed by the inputs of a text
    modelfile.py, go_template.py      the Modelfile of Ollama, and its template of a layout that a model brought
    mlx.py, onnx.py                   directories for mlx-lm, graphs for onnxruntime
    html.py                           a page in one file, whose parts are in page/ and the page_*.py; `link_modules.py`
                                      joins its scripts, `wasm.py` compiles its arithmetic
    peft_format.py, write_adapter.py  adapters; `adapter_base.py` has the weights that they belong to
    checkpoint_weights.py             the weights of a checkpoint, with its adapter
    parity.py                         the comparison that ends every export; `llama_cpp.py` and `node_calls.py` run
                                      the other programs

Nothing here trains, and no pickle is ever read.
"""
