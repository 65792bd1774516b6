# process | has the kernel's work queue do the calls | right: refused | shown: without seccomp if the kernel has it
import ctypes

libc = ctypes.CDLL(None, use_errno=True)
parameters = ctypes.create_string_buffer(120)
found = libc.syscall(425, 4, parameters)
print("ESCAPED" if found >= 0 else "refused")
