"""Text: what becomes a token, and what a conversation looks like in tokens.

Start with `tokenizer.py` (the class everything else holds), then `conversation.py` (turns, control tokens and
what the assistant learns from); `bpe.py` learns the vocabulary. Floor 1, no torch.
"""
