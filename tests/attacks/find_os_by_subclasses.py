# process | finds the os module through object.__subclasses__ and reads a file | right: PermissionError | shown: without landlock
kind = next(kind for kind in object.__subclasses__() if kind.__name__ == "_wrap_close")
os = kind.__init__.__globals__
print("ESCAPED", os["read"](os["open"](SECRET, 0), 20))
