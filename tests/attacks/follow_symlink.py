# process | reads a secret through a link that lies ready | right: PermissionError | shown: without landlock
print("ESCAPED", open(LINK).read())
