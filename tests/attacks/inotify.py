# process | watches the file system | right: refused | shown: without seccomp
import ctypes
import os

number = {"x86_64": 294, "aarch64": 26}[os.uname().machine]
found = ctypes.CDLL(None).syscall(number, 0)
print("ESCAPED" if found >= 0 else "refused")
