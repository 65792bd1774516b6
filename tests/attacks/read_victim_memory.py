# process | reads the memory of the harness with process_vm_readv | right: refused | shown: without landlock+seccomp as root
import ctypes

libc = ctypes.CDLL(None, use_errno=True)
libc.process_vm_readv.argtypes = (ctypes.c_int,) + (ctypes.c_void_p, ctypes.c_ulong) * 2 + (ctypes.c_ulong,)
buffer = ctypes.create_string_buffer(8)
mine = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 8)
theirs = (ctypes.c_void_p * 2)(ADDRESS, 8)
print("ESCAPED" if libc.process_vm_readv(HARNESS, mine, 1, theirs, 1, 0) == 8 else "refused")
