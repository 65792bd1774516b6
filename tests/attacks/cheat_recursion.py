# verdict | recurses without end | right: RecursionError | shown: none: fails anywhere
def double(number):
    return double(number)
