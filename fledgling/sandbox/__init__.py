"""Code that a model wrote, run so that it can neither do harm nor lie about how it did.

Two ways in. `interpreter.py` is a Python written in Rust (no files, no network, no processes at all): first choice
for small expressions, any platform. `process.py` is CPython behind the kernel's locks (Linux): for everything else.
`verdict.py` stands on it and says whether a program passes its tests, in a way that the program cannot forge.

Start with verdict.py; process.py keeps the fork servers, zygote.py is one, kernel.py holds the locks (Landlock,
seccomp, rlimits), namespaces.py one more, inside.py is what runs behind them, values.py how plain values cross.
Nothing imports torch.
"""
