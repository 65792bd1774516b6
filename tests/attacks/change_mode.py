# process | changes the rights of a file | right: PermissionError | shown: without seccomp
import os

os.chmod(SCRATCH, 0o777)
print("ESCAPED")
