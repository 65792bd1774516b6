# process | makes namespaces in which it is root | right: refused | shown: without seccomp if the kernel has it
import ctypes
import os

number = {"x86_64": 272, "aarch64": 97}[os.uname().machine]
found = ctypes.CDLL(None).syscall(number, 0x10000000 | 0x20000)
print("ESCAPED" if found >= 0 else "refused")
