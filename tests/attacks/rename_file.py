# process | renames a file | right: PermissionError | shown: without landlock+seccomp
import os

os.rename(MOVED, MOVED + "2")
print("ESCAPED")
