import sys

import pyroxfer_core.blocking as pyro


class Shortage(Exception):
    pass


pyro.util.SerializerBase.register_dict_to_class("example.Shortage", lambda name, data: Shortage(data["missing"]))

with pyro.Proxy(sys.argv[1]) as store:
    try:
        store.take(103)
    except Shortage as error:
        print("missing:", error.args)
    try:
        store.take(0)
    except ZeroDivisionError:
        lines = "".join(pyro.util.getPyroTraceback())
        print("client" in lines, "in count" in lines, lines.count("Traceback (most recent call last)"))
    try:
        pyro.Proxy("PYRO:store@localhost:1").take(1)
    except pyro.errors.CommunicationError:
        print("nobody is there")
