# process | changes into the folder first | right: PermissionError | shown: without landlock+seccomp
import os

os.chdir(os.path.dirname(SECRET))
print("ESCAPED", open(os.path.basename(SECRET)).read())
