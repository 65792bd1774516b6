# verdict | never finishes loading | right: timed out | shown: none: never ends
while True:
    pass
