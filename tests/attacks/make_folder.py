# process | makes a folder | right: PermissionError | shown: without landlock+seccomp
import os

os.mkdir(PLACE + "/made")
print("ESCAPED")
