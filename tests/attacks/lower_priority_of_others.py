# process | changes the priority of another process | right: PermissionError | shown: without seccomp
import os

os.setpriority(os.PRIO_PROCESS, VICTIM, 19)
print("ESCAPED")
