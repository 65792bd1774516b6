# process | sends the harness a message without end | right: reported too much | shown: none: never ends
import os

while True:
    os.write(3, b"\xff" * 65536)
