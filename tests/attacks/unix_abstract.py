# process | connects to an abstract unix socket, which has no path to forbid | right: PermissionError | shown: without landlock+seccomp
import socket

socket.socket(socket.AF_UNIX).connect("\0" + ABSTRACT)
print("ESCAPED")
