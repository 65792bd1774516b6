# process | signals the harness | right: PermissionError | shown: without landlock+seccomp
import os

os.kill(HARNESS, 0)
print("ESCAPED")
