"""Reinforcement learning as a stage value for the training loop.

Start with `advantage.py` (the papers' formulas as functions of arrays) and `algorithm.py` (GRPO and PPO), then
`rollout_stream.py` (a stream whose batches are answers of the current weights). `reward.py` scores answers, with
`grader.py` for custom functions and `model_reward.py` for reward models; `round_sampler.py` samples the answers of a
round; `collapse.py` has the metrics of a round. `build.py` builds the stage.
"""
