# process | reads a file of the host | right: PermissionError | shown: without landlock
print("ESCAPED", open(SECRET).read())
