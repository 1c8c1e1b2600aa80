import sys

import pyroxfer_core.blocking as pyro


class Point:
    def __init__(self, x, y):
        self.x, self.y = x, y


pyro.register_class_to_dict(Point, lambda point: {"__class__": "example.Point", "xy": [point.x, point.y]})
pyro.register_dict_to_class("example.Point", lambda name, data: Point(*data["xy"]))

for serializer in ("serpent", "json", "msgpack"):
    with pyro.Proxy(sys.argv[1]) as geometry:
        geometry._pyroSerializer = serializer
        middle = geometry.middle([Point(0, 0), Point(2, 4)])
        print(serializer, type(middle).__name__, middle.x, middle.y)
