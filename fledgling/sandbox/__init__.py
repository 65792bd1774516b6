"""Runs code that a model wrote, so that it can neither do harm nor fake its test results.

There are two ways to run code. `interpreter.py` is a Python written in Rust without files, network or processes: the
first choice for small expressions, on any platform. `process.py` is CPython behind Landlock, seccomp and rlimits
(Linux), for everything else. `verdict.py` uses it to decide whether a program passes its tests, in a way that the
program cannot fake.

Start with verdict.py. process.py keeps the fork servers, fork_server.py is one of them, restrictions.py applies
Landlock, seccomp and rlimits, namespaces.py adds namespaces where the machine allows them, jailed.py runs behind the
restrictions, messages.py passes values between processes, checks.py tells what works on this machine. Nothing imports
torch.
"""
