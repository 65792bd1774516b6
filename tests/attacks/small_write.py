# interpreter | writes a file | right: Error | shown: plain
with open(PLACE + "/small", "w") as file:
    file.write("x")
print("ESCAPED")
