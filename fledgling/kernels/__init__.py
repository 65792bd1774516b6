"""Kernels of inference: kinds of weights, their products, and the one place that chooses among them.

Start with `backend.py` (`select_backend`: how an engine's model multiplies its weights). The kinds of weights are plain
tensors, `packed_weight.py` (oneDNN's layout), `zero_skipping.py` (ReLU^2) and `quantized_tensor.py` (8 or 4 bits, in
the format of `format.py`; `device_matrix.py` on CUDA); each takes part in `torch.nn.functional.linear`, so the model
has no branch for them. `quantized_model.py` quantizes a whole model and loads it. `native.py` loads `cpp/` in the
variant that `native_build.py` has for this processor: products of few rows, and with `decoding_step.py` a whole
decoding step as one call.

For training: `qat.py` (quantization-aware), and `frozen_weights.py` with `nf4.py` (quantized matrices under an
adapter). Nothing here depends on engines, files or sampling.
"""
