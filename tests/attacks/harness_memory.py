# process | reads the memory of the harness through /proc | right: PermissionError | shown: without landlock+seccomp as root
with open(f"/proc/{HARNESS}/maps") as maps:
    print("ESCAPED", maps.readline())
