# process | lists the processes of the host | right: PermissionError | shown: without landlock
import os

print("ESCAPED", len(os.listdir("/proc")))
