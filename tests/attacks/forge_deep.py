# verdict | answers with a value nested a million deep | right: ended before|no value | shown: none: nothing to switch off
import os


def double(number):
    body = b"[" * 10**6
    os.write(4, len(body).to_bytes(4, "big") + body)
    os._exit(0)
