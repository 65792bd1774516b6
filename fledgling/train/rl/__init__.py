"""Learning from rewards and preferences: three stage values for the one loop, and none of them a loop.

Start with `advantage.py` and `objective.py` (the papers' formulas as functions of arrays and tensors), then
`rounds.py` (a stream whose batches are answers of the live weights) and `rollout.py` (how they are packed), `reward.py`
with `grader.py` (what an answer is worth), `critic.py` (the value head of PPO), `watch.py` (what is recorded, and signs
of collapse). `build.py` puts GRPO and PPO together, `dpo.py` preference tuning.
"""
