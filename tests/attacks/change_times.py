# process | changes the times of a file | right: PermissionError | shown: without seccomp
import os

os.utime(SCRATCH, (1, 1))
print("ESCAPED")
