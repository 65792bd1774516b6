# process | floods every descriptor it has | right: printed more than|reported too much|crashed|ended | shown: none: never ends
import os

while True:
    for descriptor in range(1, 10):
        try:
            os.write(descriptor, b"x" * 65536)
        except OSError:
            pass
