import sys

import pyroxfer_core.blocking as pyro

with pyro.Proxy(sys.argv[1]) as account:
    batch = pyro.BatchProxy(account)
    for amount in (10, 20, 30):
        batch.put(amount)
    batch.take(5)
    print(list(batch()))
    batch.take(1000)
    batch.put(1)
    try:
        for balance in batch():
            print(balance)
    except ValueError as error:
        print("stopped:", error)
    batch.put(45)
    print(batch(oneway=True))
    while account.put(0) != 100:
        pass
