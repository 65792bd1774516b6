# process | kills every process it may | right: PermissionError | shown: none: would end the session
import os

os.kill(-1, 9)
print("ESCAPED")
