# process | prints without end | right: printed more than | shown: none: never ends
while True:
    print("x" * 1000)
