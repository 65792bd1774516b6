# process | kills another process of the same user | right: PermissionError | shown: without landlock+seccomp
import os

os.kill(VICTIM, 9)
print("ESCAPED")
