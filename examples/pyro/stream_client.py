import itertools
import sys

import pyroxfer_core.blocking as pyro

with pyro.Proxy(sys.argv[1]) as source:
    print(list(source.fibonacci(10)))
    print(list(itertools.islice(source.fibonacci(1_000_000), 3)))
    print(" ".join(source.words("as long as it takes")))
    try:
        for item in source.breaking():
            print(item)
    except RuntimeError as error:
        print("broken:", error)
