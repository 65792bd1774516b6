# interpreter | returns a value nested a hundred thousand deep | right: [[[|Error | shown: none: nothing to switch off
value = []
for _ in range(100_000):
    value = [value]
value
