"""What `fledgling bench` measures: each figure next to its physical limit, measured in the same run.

    train.py        times the real training step; start here
    sized_recipe.py the recipe of one model, and what of it a benchmark reads
    infer.py        times answers, and compares the engine with other programs
    backends.py     those programs, with the same weights
    rollouts.py     how fast reinforcement learning samples
    gpu.py          the check of one GPU with one command
    gpu_*.py        its parts: kernels; tests, steps and decoding; whole stages

Experiments on single parts are in benchmarks/, outside the package.
"""
