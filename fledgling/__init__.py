"""fledgling trains a chat model from raw text to conversation.

One package, one command, one training loop: pretraining, midtraining, supervised fine-tuning and reinforcement
learning are four values of one function. Reading order:

     1  config/recipe.py                 every setting of a run
     2  text/tokenizer.py                text becomes tokens
     3  text/conversation.py             a conversation becomes tokens, and a mask of what is learned
     4  model/transformer.py             tokens become hidden states (then attention.py and norm.py)
     5  model/logprob.py                 hidden states become the loss, without the logits of a whole batch
     6  data/packing.py, data/stream.py  documents become full rows, rows become the batches of a step
     7  optim/rules.py                   gradients become updates: AdamW and Muon
     8  train/stage.py, train/loop.py    the one loop, and the value it is given
     9  infer/engine.py                  the model generates
    10  evals/                           what it has learned, with intervals

Imports only go down: 0 config files runtime record, 1 text model sandbox, 2 kernels data corpora optim,
3 plan export tasks report, 4 infer, 5 evals serve, 6 train, 7 bench scaling speedrun verify watch, 8 cli.
docs/architecture.md describes the layers; tests/invariants enforces them.
"""

__version__ = "0.1.0"
