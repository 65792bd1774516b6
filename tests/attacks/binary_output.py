# process | prints bytes that are no text | right: � | shown: none: nothing to switch off
import os

os.write(1, bytes(range(128, 256)))
