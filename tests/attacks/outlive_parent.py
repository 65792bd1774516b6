# process | undoes the signal that ends it with its parent | right: refused | shown: without seccomp
import ctypes

print("ESCAPED" if ctypes.CDLL(None).prctl(1, 0, 0, 0, 0) == 0 else "refused")
