# process | signals the process that forked it | right: PermissionError | shown: without landlock+seccomp
import os

os.kill(os.getppid(), 0)
print("ESCAPED")
