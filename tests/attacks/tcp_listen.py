# process | opens a port | right: PermissionError | shown: without landlock+seccomp
import socket

socket.create_server(("127.0.0.1", 0))
print("ESCAPED")
