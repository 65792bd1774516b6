# process | deletes a file | right: PermissionError | shown: without landlock+seccomp
import os

os.unlink(DOOMED)
print("ESCAPED")
