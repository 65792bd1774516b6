"""What a process runs on: its ranks, device, memory, signals and exit codes.

    world.py               the ranks of a run and their collectives; start here
    rendezvous.py          lets the ranks of one start find each other
    launch.py              starts the ranks of a machine and restarts them after a fault; `rank_agent.py`: what it
                           does with a rank that failed or is stopped
    watchdog.py            detects ranks that died, stopped, hung or raised
    signals.py             SIGINT, SIGTERM and SIGUSR1 as a request to stop
    interrupts.py          Ctrl-C as KeyboardInterrupt between imports, not within one
    exit_codes.py          what a process reports to the program that started it
    cgroup.py              limits of a container or a batch job, which cores.py and machine_memory.py read
    cores.py               how many processor cores it may use; `core_monitor.py`: how many it has while others compute
    machine_memory.py      the memory that it may use, and what of it is free
    open_files.py          the limit of open files
    system_environment.py  versions, platform, processor and memory, for the record of a run
    machine_checks.py      what this machine lacks for training
    device.py              dtype, threads and the measured peak FLOP/s; `known_peaks.py`: the highest of earlier days;
                           `compiler.py`: the C++ compiler; `compile_options.py`: for code of any number of threads
    accelerator.py         accelerators by torch's device type
    device_memory.py       usable memory, and the measured peak of live tensor bytes
    user_code.py           a function or class of a user
    json_process.py        a child process that answers lines of JSON
    bounded_lines.py       the output of a command, line by line

Layer 0: imports only config and record.
"""
