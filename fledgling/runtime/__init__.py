"""What a process runs on: its ranks, device, memory, signals and exit codes.

    world.py               the ranks of a run and their collectives; start here
    rendezvous.py          lets the ranks of one start find each other
    launch.py              starts the ranks of a machine and restarts them after a fault
    watchdog.py            detects ranks that died, stopped, hung or raised
    signals.py             SIGINT, SIGTERM and SIGUSR1 as a request to stop
    exit_codes.py          what a process reports to the program that started it
    cores.py               how many processor cores it may use
    system_environment.py  versions, platform, processor and memory, for the record of a run
    device.py              dtype, threads, compiler and the measured peak FLOP/s
    device_memory.py       usable memory, and the measured peak of live tensor bytes

Layer 0: imports only config and record. Only device.py and device_memory.py import torch when they are imported.
"""
