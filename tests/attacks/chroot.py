# process | changes its root | right: refused | shown: without seccomp as root
import ctypes
import os

number = {"x86_64": 161, "aarch64": 51}[os.uname().machine]
found = ctypes.CDLL(None).syscall(number, PLACE.encode())
print("ESCAPED" if found >= 0 else "refused")
