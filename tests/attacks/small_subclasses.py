# interpreter | finds a way out through object.__subclasses__ | right: AttributeError|NameError | shown: plain
found = ().__class__.__base__.__subclasses__()
print("ESCAPED", len(found))
