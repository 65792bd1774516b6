# process | lists a folder of the user | right: PermissionError | shown: without landlock
import os

print("ESCAPED", os.listdir(PLACE))
