# process | makes a named pipe for an accomplice | right: PermissionError | shown: without landlock+seccomp
import os

os.mkfifo(PLACE + "/fifo")
print("ESCAPED")
