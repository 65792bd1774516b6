# process | runs a shell command through libc | right: refused | shown: without landlock+seccomp+rlimits
import os

print("ESCAPED" if os.system("true") == 0 else "refused")
