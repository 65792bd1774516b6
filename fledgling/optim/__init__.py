"""How weights are updated: rules for one tensor, roles that choose a rule, a schedule, and the optimizer.

Start with `rules.py` (AdamW and Muon as functions of tensors), then `roles.py` (which parameter gets which rule),
`schedule.py` (the learning rate over a run) and `optimizer.py` (state, and what ranks exchange). `partition.py` assigns
parameters to ranks, `gradients.py` reduces gradients, `sharded.py` is for parameters that no rank holds whole.
"""
