# process | opens with a system call that is not openat | right: refused | shown: without landlock+seccomp
import ctypes

libc = ctypes.CDLL(None, use_errno=True)
how = (ctypes.c_uint64 * 3)(0, 0, 0)
found = libc.syscall(437, -100, SECRET.encode(), how, 24)
print("ESCAPED" if found >= 0 else "refused")
