# process | loads a program into the kernel | right: refused | shown: none: what a kernel allows differs
import ctypes
import os

number = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
found = ctypes.CDLL(None).syscall(number, 0, bytes(72), 72)
print("ESCAPED" if found >= 0 else "refused")
