# verdict | never answers | right: timed out | shown: none: never ends
def double(number):
    while True:
        pass
