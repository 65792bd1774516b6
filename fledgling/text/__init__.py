"""Text and conversations as tokens. No torch.

Start with `tokenizer.py` (text to ids and back), then `conversation.py` (turns, special tokens, and which tokens are
targets).

    bpe.py               trains the vocabulary; `batch_encoding.py` encodes many texts
    tokenizer_json.py    the contents of a tokenizer.json: `sentence_piece.py` of SentencePiece's kinds, `gpt2.py` of
                         GPT-2, `unicode_classes.py` the classes of characters that split a text
    turns.py             messages as turns; `truncation.py` drops the oldest
    template_turns.py    answers by a model's own chat template and what asks for them; `template_layout.py`
                         renders and tokenizes, `jinja_template.py` runs the template in a sandbox
    forms.py             rows as people have them; `preferences.py` those with judged answers; `form_columns.py` their
                         columns, `cell_values.py` lists and numbers in a cell
    calculator.py        the tool that a model can call inside an answer
    compression.py       how much text a token, or a general compressor, holds; `sample_texts.py` are its texts
"""
