# process | connects to a unix socket by its path | right: PermissionError | shown: without seccomp
import socket

socket.socket(socket.AF_UNIX).connect(UNIX)
print("ESCAPED")
