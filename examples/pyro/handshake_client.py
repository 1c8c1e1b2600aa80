import sys
import time

import pyroxfer_core.blocking as pyro


class Visitor(pyro.Proxy):
    def _pyroValidateHandshake(self, response):
        print("the door says:", response)


with pyro.Proxy(sys.argv[1]) as stranger:
    try:
        stranger.open()
    except Exception as error:
        print(type(error).__name__, "who are you?" in str(error))
with Visitor(sys.argv[1]) as vault:
    vault._pyroHandshake = {"user": "anna", "token": "1234"}
    print(vault.open())
    vault._pyroRelease()
    while not vault.closed():
        time.sleep(0.01)
    print("closed behind us")
