# process | asks the kernel about interfaces | right: PermissionError | shown: without seccomp
import socket

socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
print("ESCAPED")
