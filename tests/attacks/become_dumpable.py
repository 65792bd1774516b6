# process | makes itself open to other processes again | right: refused | shown: without seccomp
import ctypes

print("ESCAPED" if ctypes.CDLL(None).prctl(4, 1, 0, 0, 0) == 0 else "refused")
