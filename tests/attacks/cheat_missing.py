# verdict | has no such function | right: no function double | shown: none: fails anywhere
def triple(number):
    return 3 * number
