# process | opens for reading what truncates | right: refused | shown: without landlock+seccomp
import os

try:
    os.open(SCRATCH, os.O_RDONLY | os.O_TRUNC)
    print("ESCAPED")
except PermissionError:
    print("refused")
