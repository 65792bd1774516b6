# process | fetches a page of a server on this machine | right: not permitted | shown: without landlock+seccomp
import urllib.request

try:
    urllib.request.urlopen(f"http://127.0.0.1:{PORT}/", timeout=0.3)
except TimeoutError:  # connected; the server says nothing
    print("ESCAPED")
