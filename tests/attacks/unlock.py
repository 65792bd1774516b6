# process | puts a filter of its own on top that allows everything | right: refused | shown: without seccomp
import ctypes
import struct

code = ctypes.create_string_buffer(struct.pack("=HBBI", 6, 0, 0, 0x7FFF0000))
program = ctypes.create_string_buffer(struct.pack("=HxxxxxxQ", 1, ctypes.addressof(code)))
libc = ctypes.CDLL(None)
print("ESCAPED" if libc.prctl(22, 2, program, 0, 0) == 0 else "refused")
