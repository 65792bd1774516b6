# verdict | crashes | right: ended before | shown: none: fails anywhere
import ctypes


def double(number):
    ctypes.string_at(0)
