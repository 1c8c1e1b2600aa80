"""Classes of the program itself, sent through converters."""

import pyroxfer_core.blocking as pyro


class Point:
    def __init__(self, x, y):
        self.x, self.y = x, y


pyro.register_class_to_dict(Point, lambda point: {"__class__": "example.Point", "xy": [point.x, point.y]})
pyro.register_dict_to_class("example.Point", lambda name, data: Point(*data["xy"]))


@pyro.expose
class Geometry:
    def middle(self, points):
        count = len(points)
        return Point(sum(point.x for point in points) / count, sum(point.y for point in points) / count)


with pyro.Daemon() as daemon:
    print(daemon.register(Geometry, "geometry"), flush=True)
    daemon.requestLoop()
