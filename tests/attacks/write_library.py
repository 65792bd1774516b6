# process | plants code in the standard library that later programs import | right: PermissionError | shown: none: would change the library
import os

with open(os.path.dirname(os.__file__) + "/planted.py", "w") as file:
    file.write("x")
print("ESCAPED")
