# process | handles page faults itself, a step of many exploits | right: refused | shown: without seccomp if the kernel has it
import ctypes
import os

number = {"x86_64": 323, "aarch64": 282}[os.uname().machine]
found = ctypes.CDLL(None).syscall(number, 1)
print("ESCAPED" if found >= 0 else "refused")
