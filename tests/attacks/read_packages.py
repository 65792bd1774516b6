# process | reads the third-party packages of the host's Python | right: PermissionError | shown: without landlock
print("ESCAPED", open(PACKAGE).read(20))
