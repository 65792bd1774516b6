# process | never ends | right: timed out | shown: none: never ends
while True:
    pass
