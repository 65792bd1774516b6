# process | makes timers that send signals | right: refused | shown: without seccomp
import ctypes
import os

number = {"x86_64": 222, "aarch64": 107}[os.uname().machine]
found = ctypes.CDLL(None).syscall(number, 1, None, (ctypes.c_int * 1)())
print("ESCAPED" if found >= 0 else "refused")
