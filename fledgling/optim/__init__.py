"""How weights are updated: rules for one tensor, roles that choose a rule, a schedule, and the optimizer.

Start with `rules.py` (AdamW and Muon as functions of tensors), then `roles.py` (which parameter gets which rule),
`schedule.py` (the learning rate over a run) and `optimizer.py` (which updates, and what ranks exchange). `state.py`
stores the state in each format, `tied.py` updates embedding and head as one matrix, `loss_scale.py` is for float16.
`partition.py` assigns parameters to ranks, `owned.py` is the part that a rank has, `gradients.py` reduces gradients,
`sharded.py` is for parameters that no rank holds whole.
"""
