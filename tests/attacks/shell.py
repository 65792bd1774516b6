# process | runs a shell command | right: PermissionError | shown: without landlock+seccomp+rlimits
import subprocess

print("ESCAPED", subprocess.run(["/bin/echo", "hello"], stdout=subprocess.PIPE).stdout)
