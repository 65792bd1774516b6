# process | attaches to another process as a debugger | right: refused | shown: without landlock+seccomp as root
import ctypes

libc = ctypes.CDLL(None)
libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
print("ESCAPED" if libc.ptrace(0x4206, VICTIM, None, None) == 0 else "refused")
