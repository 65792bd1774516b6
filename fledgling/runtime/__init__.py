"""What a process runs on and how it ends: ranks and their collectives, the watchdog, the launcher, signals, exit codes.

Start with `world.py` (ranks), then `watchdog.py` and `launch.py` (what happens when one is lost), `signals.py` and
`exit_codes.py` (how a run is stopped and what it answers).
"""
