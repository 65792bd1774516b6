# verdict | raises an error whose text never ends | right: timed out | shown: none: never ends
class Evil(Exception):
    def __str__(self):
        while True:
            pass


def double(number):
    raise Evil
