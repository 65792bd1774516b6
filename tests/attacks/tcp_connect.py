# process | connects to a server on this machine | right: PermissionError | shown: without landlock+seccomp
import socket

socket.create_connection(("127.0.0.1", PORT), 2).close()
print("ESCAPED")
