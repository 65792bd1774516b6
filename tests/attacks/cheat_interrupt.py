# verdict | raises what is no ordinary error | right: KeyboardInterrupt | shown: none: fails anywhere
def double(number):
    raise KeyboardInterrupt
