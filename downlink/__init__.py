"""What both ends of Latent Downlink must agree on, byte for byte.

Everything here is a function of its arguments: nothing in this package opens a file, a socket, a model session or a
clock. (`downlink.cli`, the command, is the one exception; `downlink.bundle` reads the model folder it is given.)
"""

__version__ = "0.1.0"
