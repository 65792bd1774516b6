# verdict | returns what differs from itself | right: AssertionError | shown: none: fails anywhere
def double(number):
    return float("nan")
