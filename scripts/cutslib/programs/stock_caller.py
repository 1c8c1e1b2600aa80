"""A stock client, one call for each line: stock_caller.py 4|5. Lines are [location, method, name] in JSON."""

import json
import sys

VERSION = sys.argv[1]
if VERSION == "4":
    import Pyro4

    Proxy, config = Pyro4.Proxy, Pyro4.config
else:
    from Pyro5.api import Proxy, config

config.COMMTIMEOUT = 5
print(json.dumps("ready"), flush=True)
for line in sys.stdin:
    location, method, name = json.loads(line)
    try:
        with Proxy("PYRO:oracle@" + location) as proxy:
            getattr(proxy, method)(name)
    except LookupError as error:
        answer = "executed" if error.args == (name,) else "error"
    except Exception as error:
        answer = "notsent" if "NotSent" in str(error) else "error"
    else:
        answer = "value"
    print(json.dumps(answer), flush=True)
