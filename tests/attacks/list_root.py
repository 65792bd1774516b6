# process | lists the root of the file system | right: PermissionError | shown: without landlock
import os

print("ESCAPED", os.listdir("/"))
