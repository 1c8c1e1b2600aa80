"""Item streams: generators and iterators are read one item at a time."""

import pyroxfer_core.blocking as pyro


@pyro.expose
class Source:
    def fibonacci(self, count):
        a, b = 1, 1
        for _ in range(count):
            yield a
            a, b = b, a + b

    def words(self, text):
        return iter(text.split())

    def breaking(self):
        yield "first"
        raise RuntimeError("the source is dry")


with pyro.Daemon() as daemon:
    print(daemon.register(Source, "source"), flush=True)
    daemon.requestLoop()
