import sys

import pyroxfer_core.blocking as pyro

slow = pyro.Proxy(sys.argv[1])
slow._pyroAsync()
results = [slow.double(number) for number in range(5)]
print([result.value for result in results])
print(slow.double(3).then(lambda value: value + 1).then(str).value)
failed = slow.divide(1, 0)
try:
    print(failed.value)
except ZeroDivisionError as error:
    print("failed:", error)
slow._pyroAsync(False)
future = pyro.Future(slow.double).then(lambda value, factor: value * factor, 10)
print(future.delay(0.01), future(2).value, future.cancel())
batch = pyro.batch(slow)
batch.double(1)
batch.double(2)
print(list(batch(asynchronous=True).value))
never = pyro.Future(slow.double)
print(never.cancel())
