# verdict | is simply wrong | right: AssertionError: assert candidate(21) == 42 | shown: none: fails anywhere
def double(number):
    return number + 1
