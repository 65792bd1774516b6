# verdict | announces an answer of four gigabytes | right: ended before | shown: none: nothing to switch off
import os


def double(number):
    os.write(4, b"\xff" * 4)
    while True:
        os.write(4, b"x" * 65536)
