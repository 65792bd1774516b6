# process | calls code that is not there | right: crashed | shown: none: a crash is a crash
import ctypes

ctypes.CFUNCTYPE(None)(16)()
