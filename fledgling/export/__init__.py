"""Exports to and imports from other formats, for all families: Hugging Face directories, GGUF, MLX, ONNX, hubs;
a page that holds the model.

Start with `hf_mapping.py`, the one table of names and shapes that export and import both read; then `write_hf.py`
(writes a directory), `read_hf.py` (reads one from any source), `import_hf.py` (makes a checkpoint of it), `gguf.py`
(`gguf_architectures.py` first), `mlx.py`, `onnx.py`, `compressed_tensors.py`, `push.py`, `chat_template.py` (the
conversation format in Jinja), `model_card.py`, `html.py` (a page, whose parts are in page/), and `parity.py`, the
comparison that ends every export. Nothing here trains, and no pickle is ever read.
"""
