import copy
import sys
import threading

import pyroxfer_core.blocking as pyro

results = {}


def work(number, proxy):
    proxy._pyroClaimOwnership()
    results[number] = [proxy.add(number, step) for step in range(5)]
    proxy._pyroRelease()


with pyro.Proxy(sys.argv[1]) as adder:
    threads = [threading.Thread(target=work, args=(number, copy.copy(adder))) for number in range(4)]
    threads.append(threading.Thread(target=work, args=(4, adder)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    adder._pyroClaimOwnership()
for number in sorted(results):
    print(number, results[number])
