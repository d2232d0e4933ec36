"""The public test kit: a virtual world that runs the production machines, faults to put into it, and checkers."""
