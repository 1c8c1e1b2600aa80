"""Objects that are served: what they show, where they are found, how a request finds its method."""
