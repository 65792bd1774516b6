# interpreter | never ends | right: TimeoutError | shown: none: never ends
while True:
    pass
