# process | takes an O_PATH descriptor and opens it again through /proc/self/fd | right: refused | shown: without landlock
import os

try:
    handle = os.open(SECRET, os.O_PATH)
    print("ESCAPED", open(f"/proc/self/fd/{handle}").read())
except PermissionError:
    print("refused")
