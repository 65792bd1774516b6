# process | takes memory bit by bit | right: MemoryError | shown: without rlimits
blocks = []
while len(blocks) < 300:
    blocks.append(bytes(2**20))
print("ESCAPED")
