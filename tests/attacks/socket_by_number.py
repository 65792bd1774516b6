# process | opens a socket by its number, around Python | right: refused | shown: without seccomp
import ctypes
import os

number = {"x86_64": 41, "aarch64": 198}[os.uname().machine]
found = ctypes.CDLL(None).syscall(number, 2, 1, 0)
print("ESCAPED" if found >= 0 else "refused")
