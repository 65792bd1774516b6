"""Packed weights: matrices in 8 or 4 bits, and products that read them as fast as memory gives them.

Start with `format.py` (what the bits mean), then `tensor.py` (a matrix in that format that a model holds in place of
its weight), `model.py` (a whole model quantized, and its checkpoint), `native.py` with `native.cpp` (products of few
rows, compiled here), and `step.py` (a decoding step as one call). Nothing here knows of engines, files or sampling.
"""
