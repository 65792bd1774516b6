# process | kills its process group, and so its siblings | right: PermissionError | shown: none: would end the child itself
import os

os.killpg(0, 9)
print("ESCAPED")
