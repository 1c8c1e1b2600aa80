"""A stock Pyro5 client that calls one number after the other until its input ends: stock_caller.py WAY URI FIRST

Prints a JSON list for each call: its number, and what it was told. A lost connection is made again, as users do.
"""

import json
import select
import sys
import time

from Pyro5.api import Proxy, SerializedBlob, config
from Pyro5.errors import CommunicationError, PyroError

WAY, URI, FIRST = sys.argv[1], sys.argv[2], int(sys.argv[3])
PAUSE_S = 0.002

config.COMMTIMEOUT = 30


def call(proxy: Proxy, number: int) -> str:
    try:
        proxy._pyroBind()
    except (PyroError, OSError) as error:
        return f"refused: {error}"
    try:
        answer = proxy.process(SerializedBlob("blob", [number, None])) if WAY == "blob" else proxy.note(number)
    except CommunicationError:
        proxy._pyroRelease()
        return "cut"
    except Exception as error:
        text = str(error)
        return text.partition(":")[0] if text.startswith(("NotSent: ", "Unknown: ")) else f"error: {text}"
    return "Executed" if answer == number else f"error: {answer!r}"


with Proxy(URI) as proxy:
    number = FIRST
    while not select.select([sys.stdin], [], [], 0)[0]:
        print(json.dumps([number, call(proxy, number)]), flush=True)
        number += 1
        time.sleep(PAUSE_S)
