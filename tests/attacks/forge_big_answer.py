# verdict | answers with a text of a hundred megabytes | right: ended before|MemoryError|timed out | shown: none: nothing to switch off
def double(number):
    return "x" * 100_000_000
