# interpreter | looks for names of an earlier call | right: NameError | shown: none: nothing to switch off
print("ESCAPED", left_over)
