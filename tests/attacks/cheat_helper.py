# verdict | replaces a helper that the tests use | right: AssertionError | shown: naive helper
def trusted(number):
    return None


def double(number):
    return None
