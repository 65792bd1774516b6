# process | leaves a process behind that outlives it | right: PermissionError | shown: without seccomp+rlimits
import os
import time

if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(1)
    os._exit(0)
print("ESCAPED")
