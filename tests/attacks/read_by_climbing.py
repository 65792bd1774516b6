# process | climbs out of the readable folders with .. | right: PermissionError | shown: without landlock
import os

up = "/.." * 30
print("ESCAPED", open(os.path.dirname(os.__file__) + up + SECRET).read())
