# process | prints more than it may, and then continues | right: printed more than | shown: plain
print("x" * 300_000)
print("ESCAPED")
