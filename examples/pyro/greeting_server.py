"""Plain calls: methods, a property, an exception."""

import pyroxfer_core.blocking as pyro


@pyro.expose
class Greeting:
    def __init__(self):
        self._language = "en"

    def greet(self, name, loud=False):
        word = {"en": "hello", "fr": "bonjour"}[self._language]
        return f"{word} {name}".upper() if loud else f"{word} {name}"

    @property
    def language(self):
        return self._language

    @language.setter
    def language(self, value):
        if value not in ("en", "fr"):
            raise ValueError(f"no greeting in {value!r}")
        self._language = value


with pyro.Daemon() as daemon:
    print(daemon.register(Greeting(), "greeting"), flush=True)
    daemon.requestLoop()
