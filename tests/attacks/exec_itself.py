# process | replaces itself by another program | right: PermissionError | shown: without landlock+seccomp+rlimits
import os

os.execv("/bin/echo", ["echo", "ESCAPED"])
