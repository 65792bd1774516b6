# process | looks for open descriptors of the harness | right: nothing | shown: plain
import os

found = []
for descriptor in range(4, 256):
    try:
        os.fstat(descriptor)
        found.append(descriptor)
    except OSError:
        pass
print("ESCAPED" if found else "nothing", found)
