# process | appends to a file that exists | right: PermissionError | shown: without landlock+seccomp+rlimits
with open(SCRATCH, "a") as file:
    file.write("more")
print("ESCAPED")
