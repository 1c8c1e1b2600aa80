import sys

import pyroxfer_core.blocking as pyro

with pyro.Proxy(sys.argv[1]) as greeting:
    greeting.language = "en"
    print(greeting.greet("world"), greeting.greet("world", loud=True))
    greeting.language = "fr"
    print(greeting.language, greeting.greet(name="monde"))
    try:
        greeting.language = "xx"
    except ValueError as error:
        print("refused:", error)
    try:
        greeting.undress()
    except AttributeError:
        print("no such method")
