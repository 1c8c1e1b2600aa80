"""Entries in etcd, shared by any number of name servers and dispatchers (extra ``etcd``)."""
