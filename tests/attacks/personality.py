# process | switches off address randomisation | right: refused | shown: without seccomp
import ctypes
import os

number = {"x86_64": 135, "aarch64": 92}[os.uname().machine]
found = ctypes.CDLL(None).syscall(number, 0x0040000)
print("ESCAPED" if found >= 0 else "refused")
