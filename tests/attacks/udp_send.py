# process | sends a datagram | right: PermissionError | shown: without seccomp
import socket

socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", PORT))
print("ESCAPED")
