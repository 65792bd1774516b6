"""fledgling raises a chat model of your own from raw text to conversation.

One package, one command, one training loop: pretraining, midtraining, fine-tuning and reinforcement
learning are four values of one function. To know how a chat model is made, read in this order:

     1  config.py                 what a run is told
     2  text/tokenizer.py         text becomes tokens
     3  text/conversation.py      a conversation becomes tokens, and which of them are learned
     4  model/transformer.py      tokens become hidden states (then attention.py and norm.py beside it)
     5  model/logprob.py          hidden states become the loss, without whole logits
     6  data/packing.py, stream.py   documents become full rows, rows become the batches of a step
     7  optim/rules.py            gradients become updates: AdamW and Muon
     8  train/stage.py, loop.py   the one loop, and the value it is given
     9  infer/engine.py           the model writes
    10  evals/                    what it has learned, with intervals

Imports only go down: 0 config world record, 1 text model optim sandbox, 2 data tasks infer plan, 3 evals export,
4 train, 5 serve report speedrun bench lab, 6 cli. docs/architecture.md shows the house; tests/laws keep it.
"""

__version__ = "0.1.0"
