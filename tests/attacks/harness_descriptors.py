# process | opens the harness's descriptors through /proc | right: PermissionError | shown: without landlock+seccomp
import os

print("ESCAPED", os.listdir(f"/proc/{HARNESS}/fd"))
