# process | moves another process to one core | right: PermissionError | shown: without seccomp
import os

os.sched_setaffinity(VICTIM, {0})
print("ESCAPED")
