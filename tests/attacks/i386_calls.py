# process | uses the 32-bit system calls, whose numbers mean other things | right: crashed: SIGSYS|refused | shown: none: machine code of one processor
import ctypes
import mmap
import os

if os.uname().machine != "x86_64":
    print("refused")
else:  # mov eax, 20 (getpid); int 0x80; ret
    code = mmap.mmap(-1, 4096, prot=7)
    code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    ctypes.CFUNCTYPE(ctypes.c_int)(address)()
    print("ESCAPED")
