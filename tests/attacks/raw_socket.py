# process | opens a raw socket | right: PermissionError | shown: without seccomp as root
import socket

socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)
print("ESCAPED")
