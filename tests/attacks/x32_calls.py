# process | uses the x32 numbers of the system calls | right: crashed: SIGSYS|refused | shown: none: few kernels have them
import ctypes
import os

if os.uname().machine == "x86_64":
    ctypes.CDLL(None).syscall(0x40000000 + 39)
    print("ESCAPED")
print("refused")
