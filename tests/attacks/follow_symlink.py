# process | reads a secret through a link that was prepared | right: PermissionError | shown: without landlock
print("ESCAPED", open(LINK).read())
