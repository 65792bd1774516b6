# process | makes a link to a secret in a place it could read | right: PermissionError | shown: without landlock+seccomp
import os

os.symlink(SECRET, PLACE + "/link")
print("ESCAPED")
