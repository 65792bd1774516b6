# process | mounts a file system | right: refused | shown: none: would change the machine
import ctypes
import os

number = {"x86_64": 165, "aarch64": 40}[os.uname().machine]
found = ctypes.CDLL(None).syscall(number, b"none", PLACE.encode(), b"tmpfs", 1 << 5 | 1 << 12, None)
print("ESCAPED" if found >= 0 else "refused")
