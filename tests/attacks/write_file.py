# process | writes a file | right: PermissionError | shown: without landlock+seccomp+rlimits
with open(PLACE + "/written", "w") as file:
    file.write("x")
print("ESCAPED")
