# process | links a file under another name | right: PermissionError | shown: without landlock+seccomp
import os

os.link(SCRATCH, PLACE + "/hard")
print("ESCAPED")
