# process | clones itself by number, around Python | right: refused | shown: without seccomp+rlimits
import ctypes
import os

number = {"x86_64": 56, "aarch64": 220}[os.uname().machine]
pid = ctypes.CDLL(None).syscall(number, 17, 0, 0, 0, 0)
if pid == 0:
    os._exit(0)
print("ESCAPED" if pid > 0 else "refused")
