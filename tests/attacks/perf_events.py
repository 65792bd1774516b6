# process | asks for hardware counters | right: refused | shown: none: many machines have none
import ctypes
import os

number = {"x86_64": 298, "aarch64": 241}[os.uname().machine]
found = ctypes.CDLL(None).syscall(number, bytes(128), 0, -1, -1, 0)
print("ESCAPED" if found >= 0 else "refused")
