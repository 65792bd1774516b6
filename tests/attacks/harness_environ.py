# process | reads the environment of the harness | right: PermissionError | shown: without landlock+seccomp
print("ESCAPED", open(f"/proc/{HARNESS}/environ", "rb").read(50))
