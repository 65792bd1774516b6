"""Stress tests: programs that corrupt and kill real runs so often that the results do not depend on luck.

    python -m tests.campaigns.kill --count 200 --seed 1       kill -9 at random moments of all stages
    python -m tests.campaigns.flips --count 500 --seed 1      single flipped bits over all files of a checkpoint
    python -m tests.campaigns.full_disk                       a full disk at each page of a save
    python -m tests.campaigns.power_loss                      power lost at each call of a save, retention, rollback
    python -m tests.campaigns.ranks                           ranks that die, stop or raise
    python -m tests.campaigns.load CHECKPOINT                 64 clients at a server, some of them misbehaving
    python -m tests.campaigns.any_ranks --out FOLDER          50 steps on 1, 2, 4 and 8 ranks: the same weights

Each prints what it counted and exits with 1 when a check failed. `test_campaigns.py` runs a few seconds of each.
"""
