# process | maps memory without touching it | right: Error | shown: without rlimits
import mmap

mmap.mmap(-1, 2**31)
print("ESCAPED")
