# process | closes all descriptors and leaves | right: exited|ended | shown: none: nothing to switch off
import os

os.closerange(0, 256)
