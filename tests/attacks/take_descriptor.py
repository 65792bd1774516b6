# process | takes a descriptor out of the harness | right: refused | shown: without landlock+seccomp as root
import ctypes

libc = ctypes.CDLL(None)
handle = libc.syscall(434, HARNESS, 0)
taken = libc.syscall(438, handle, 1, 0) if handle >= 0 else -1
print("ESCAPED" if taken >= 0 else "refused")
