# process | has the kernel signal another process when a pipe is ready | right: PermissionError | shown: without seccomp
import fcntl
import os

fcntl.fcntl(os.pipe()[0], 8, VICTIM)
print("ESCAPED")
