# verdict | returns what Python treats as a question back | right: no plain value | shown: none: fails anywhere
def double(number):
    return NotImplemented
