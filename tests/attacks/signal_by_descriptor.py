# process | signals a process through a pidfd | right: refused | shown: without landlock+seccomp
import ctypes

libc = ctypes.CDLL(None)
handle = libc.syscall(434, VICTIM, 0)
sent = libc.syscall(424, handle, 0, None, 0) if handle >= 0 else -1
print("ESCAPED" if sent == 0 else "refused")
