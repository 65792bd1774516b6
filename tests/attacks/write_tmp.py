# process | leaves a file in /tmp | right: No usable temporary directory|PermissionError | shown: without landlock+seccomp+rlimits
import tempfile

with tempfile.TemporaryFile() as file:
    file.write(b"x")
print("ESCAPED")
