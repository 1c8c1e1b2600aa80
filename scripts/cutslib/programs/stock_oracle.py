"""A stock daemon that counts what it runs: stock_oracle.py 4|5. Ends with its standard input."""

import json
import sys
import threading
from collections import Counter

VERSION = sys.argv[1]
if VERSION == "4":
    from Pyro4 import Daemon, behavior, expose, oneway
else:
    from Pyro5.api import Daemon, behavior, expose, oneway


@behavior("single")
@expose
class Oracle:
    def __init__(self):
        self.executed = Counter()

    def run(self, name):
        self.executed[name] += 1
        return name

    def fail(self, name):
        self.executed[name] += 1
        raise LookupError(name)

    @oneway
    def note(self, name):
        self.executed[name] += 1

    def counts(self):
        return dict(self.executed)


daemon = Daemon(host="127.0.0.1")
print(json.dumps(str(daemon.register(Oracle, "oracle"))), flush=True)
threading.Thread(target=daemon.requestLoop, daemon=True).start()
sys.stdin.read()
