# interpreter | prints without end | right: MemoryError|TimeoutError | shown: none: never ends
while True:
    print("x" * 100)
