# interpreter | takes more memory than it may | right: MemoryError | shown: plain
block = [0] * (4 * 2**20)
print("ESCAPED")
