# process | opens a folder first and the file relative to it | right: refused | shown: without landlock
import os

try:
    place = os.open(os.path.dirname(SECRET), os.O_PATH)
    file = os.open(os.path.basename(SECRET), os.O_RDONLY, dir_fd=place)
    print("ESCAPED", os.read(file, 20))
except PermissionError:
    print("refused")
