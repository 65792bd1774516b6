# interpreter | recurses without end | right: RecursionError | shown: none: Python's own bound
def deeper():
    return deeper()


deeper()
