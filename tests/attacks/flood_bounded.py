# process | prints more than it may, and then goes on | right: printed more than | shown: plain
print("x" * 300_000)
print("ESCAPED")
