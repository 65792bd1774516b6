# process | makes shared memory that outlives it | right: refused | shown: none: would leave memory behind
import ctypes
import os

number = {"x86_64": 29, "aarch64": 194}[os.uname().machine]
found = ctypes.CDLL(None).syscall(number, 0, 4096, 0o1600)
print("ESCAPED" if found >= 0 else "refused")
