# process | takes more memory than it may | right: MemoryError | shown: without rlimits
block = bytearray(300 * 2**20)
print("ESCAPED")
