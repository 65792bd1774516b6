# process | clones itself with the call whose arguments no filter can see | right: refused | shown: without seccomp+rlimits
import ctypes
import os

arguments = (ctypes.c_uint64 * 8)(0, 0, 0, 0, 17, 0, 0, 0)
pid = ctypes.CDLL(None).syscall(435, arguments, 64)
if pid == 0:
    os._exit(0)
print("ESCAPED" if pid > 0 else "refused")
