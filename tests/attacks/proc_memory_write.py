# process | writes its own memory through /proc | right: PermissionError | shown: without landlock+seccomp as root
with open("/proc/self/mem", "r+b", buffering=0):
    print("ESCAPED")
