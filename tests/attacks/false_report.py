# process | sends a report that is no JSON | right: ended|exited|reported | shown: none: nothing to switch off
import os

os.write(3, b"\x00\x00\x00\x05{{{{{")
os._exit(0)
