# process | makes a file in memory to run from | right: PermissionError | shown: without seccomp
import os

os.memfd_create("x")
print("ESCAPED")
