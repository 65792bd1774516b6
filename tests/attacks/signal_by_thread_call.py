# process | signals a process through the call meant for threads | right: refused | shown: without landlock+seccomp
import ctypes
import os

number = {"x86_64": 234, "aarch64": 131}[os.uname().machine]
sent = ctypes.CDLL(None).syscall(number, VICTIM, VICTIM, 0)
print("ESCAPED" if sent == 0 else "refused")
