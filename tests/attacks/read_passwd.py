# process | reads the host's users | right: PermissionError | shown: without landlock
print("ESCAPED", open("/etc/passwd").read(20))
