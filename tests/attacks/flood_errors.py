# process | floods the error stream | right: printed more than | shown: none: never ends
import sys

while True:
    sys.stderr.write("x" * 1000)
