# process | opens a file by its handle, around every path | right: refused | shown: without landlock+seccomp as root
import ctypes
import os

libc = ctypes.CDLL(None, use_errno=True)
handle = ctypes.create_string_buffer((128).to_bytes(4, "little") + bytes(140))
found = libc.name_to_handle_at(-100, SECRET.encode(), handle, ctypes.byref(ctypes.c_int()), 0)
if found == 0:
    found = libc.open_by_handle_at(os.open(os.path.dirname(SECRET), os.O_RDONLY), handle, 0)
print("ESCAPED" if found >= 0 else "refused")
