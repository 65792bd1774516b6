# process | asks whether a file is there and how large | right: FileNotFoundError | shown: without namespaces if the kernel has it
import os

print("ESCAPED", os.stat(SECRET).st_size)
