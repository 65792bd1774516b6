"""How weights move: rules for one tensor, roles that choose a rule, a schedule, and the optimizer that applies them.

Start with `rules.py` (AdamW and Muon as functions of tensors), then `groups.py` (which parameter gets which),
`schedule.py` (progress to multiplier) and `optimizer.py` (state, and what ranks exchange); `sharded.py` is for
parameters that no rank holds whole.
"""
