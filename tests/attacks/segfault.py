# process | crashes the interpreter | right: crashed: SIGSEGV | shown: none: a crash is a crash
import ctypes

ctypes.string_at(0)
