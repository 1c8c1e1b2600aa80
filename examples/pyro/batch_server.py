"""Batches: many calls in one message."""

import pyroxfer_core.blocking as pyro


@pyro.expose
class Account:
    def __init__(self):
        self.balance = 0

    def put(self, amount):
        self.balance += amount
        return self.balance

    def take(self, amount):
        if amount > self.balance:
            raise ValueError("not enough")
        self.balance -= amount
        return self.balance


with pyro.Daemon() as daemon:
    print(daemon.register(Account, "account"), flush=True)
    daemon.requestLoop()
