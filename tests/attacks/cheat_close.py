# verdict | closes all descriptors | right: ended before | shown: none: nothing to switch off
import os


def double(number):
    os.closerange(0, 64)
