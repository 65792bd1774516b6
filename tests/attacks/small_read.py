# interpreter | reads a file of the host | right: PermissionError | shown: plain
print("ESCAPED", open("/etc/passwd").read())
