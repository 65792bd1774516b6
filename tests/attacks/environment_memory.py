# process | looks for the environment in libc's memory | right: nothing | shown: plain
import ctypes

found = ctypes.CDLL(None).getenv
found.restype = ctypes.c_char_p
print("ESCAPED" if found(b"FLEDGLING_ATTACK_SECRET") else "nothing")
