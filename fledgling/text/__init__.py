"""Text and conversations as tokens. No torch.

Start with `tokenizer.py` (text to ids and back), then `conversation.py` (turns, special tokens, and which tokens are
targets). `bpe.py` trains the vocabulary, `batch_encoding.py` encodes many texts, `gpt2.py` reads GPT-2's vocabulary,
and `compression.py` measures how much text a token, or a general compressor, holds.
"""
