"""The name server: names to URIs, over the network and in a program."""
