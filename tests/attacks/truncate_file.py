# process | empties a file by its path | right: PermissionError | shown: without landlock+seccomp
import os

os.truncate(SCRATCH, 0)
print("ESCAPED")
