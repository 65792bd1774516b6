# process | sends a report so deeply nested that reading it recurses | right: ended|exited|reported | shown: none: nothing to switch off
import os

body = b"[" * 100_000
os.write(3, len(body).to_bytes(4, "big") + body)
os._exit(0)
