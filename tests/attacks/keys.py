# process | makes a key in the kernel's keyring | right: refused | shown: without seccomp if the kernel has it
import ctypes
import os

number = {"x86_64": 248, "aarch64": 217}[os.uname().machine]
found = ctypes.CDLL(None).syscall(number, b"user", b"fledgling", b"x", 1, -1)
print("ESCAPED" if found >= 0 else "refused")
