# process | reads its own first environment | right: PermissionError | shown: without landlock as root
print("ESCAPED", open("/proc/self/environ").read())
